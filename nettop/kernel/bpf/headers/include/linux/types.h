// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The kernel's integer types; everything else a program needs is a slice generated from BTF.
// bcc's own header also includes the headers here that only include this one.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef u8 __u8;
typedef u16 __u16;
typedef u32 __u32;
typedef u64 __u64;
typedef s8 __s8;
typedef s16 __s16;
typedef s32 __s32;
typedef s64 __s64;
typedef u16 __le16;
typedef u32 __le32;
typedef u64 __le64;
typedef u16 __be16;
typedef u32 __be32;
typedef u64 __be64;
typedef u16 __sum16;
typedef u32 __wsum;
typedef u8 uint8_t;
typedef u16 uint16_t;
typedef u32 uint32_t;
typedef u64 uint64_t;
typedef s8 int8_t;
typedef s16 int16_t;
typedef s32 int32_t;
typedef s64 int64_t;
typedef unsigned long size_t;
typedef long ssize_t;
typedef unsigned long uintptr_t;
typedef int pid_t;
typedef u32 uid_t;
typedef u32 gid_t;
typedef _Bool bool;

#define true 1
#define false 0
#ifndef NULL
#define NULL ((void *)0)
#endif
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
// LLVM 19 may copy two adjacent members with one load, but the verifier rejects reads beyond a member.
// LLVM 14 does not do this, and its programs are faster without `volatile`.
#if __clang_major__ > 14
#define __read_alone volatile
#else
#define __read_alone
#endif
#define __aligned_u64 u64 __attribute__((aligned(8)))

#define TASK_COMM_LEN 16
#define PAGE_SIZE 4096
