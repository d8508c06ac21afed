# SPDX-License-Identifier: Apache-2.0
"""Hold an XDP program that drops chosen TCP packets on one device: drop.py NAMESPACE DEVICE.

Each line of standard input is a rule as JSON (an empty line changes nothing); the counters answer each line.
The program hangs on a bpf link, so it ends with this process. bcc needs only nettop's own headers.
"""

import ctypes
import json
import os
import signal
import struct
import sys

from bcc import BPF

PROGRAM = r"""
struct rule { u32 every, mask, value, data, port; };
struct counts { u64 matched, dropped; };
BPF_ARRAY(rules, struct rule, 1);
BPF_ARRAY(counters, struct counts, 1);

struct ethernet { u8 to[6], from[6]; u16 type; } __attribute__((packed));
struct ipv4 {
  u8 size, tos; u16 length, id, fragment; u8 ttl, protocol; u16 sum; u32 from, to;
} __attribute__((packed));
struct ipv6 { u32 flow; u16 length; u8 next, hops; u8 from[16], to[16]; } __attribute__((packed));
struct tcp { u16 from, to; u32 sequence, ack; u8 size, flags; } __attribute__((packed));

static __always_inline u16 swap(u16 value) { return value << 8 | value >> 8; }

static __always_inline int judge(struct tcp *segment, u32 payload) {
  int zero = 0;
  struct rule *rule = rules.lookup(&zero);
  struct counts *counts = counters.lookup(&zero);
  if (!rule || !counts || !rule->every || (segment->flags & rule->mask) != rule->value) return XDP_PASS;
  if ((rule->data == 1 && !payload) || (rule->data == 2 && payload)) return XDP_PASS;
  if (rule->port && swap(segment->from) != rule->port && swap(segment->to) != rule->port) return XDP_PASS;
  counts->matched++;
  if (counts->matched % rule->every) return XDP_PASS;
  counts->dropped++;
  return XDP_DROP;
}

int drop(struct xdp_md *packet) {
  void *at = (void *)(long)packet->data, *end = (void *)(long)packet->data_end;
  struct ethernet *frame = at;
  if ((void *)(frame + 1) > end) return XDP_PASS;
  if (swap(frame->type) == 0x0800) {
    struct ipv4 *header = (void *)(frame + 1);
    struct tcp *segment = (void *)(header + 1);
    if ((void *)(segment + 1) > end || header->protocol != 6 || header->size != 0x45) return XDP_PASS;
    return judge(segment, swap(header->length) - 20 - (segment->size >> 4) * 4);
  }
  if (swap(frame->type) == 0x86dd) {
    struct ipv6 *header = (void *)(frame + 1);
    struct tcp *segment = (void *)(header + 1);
    if ((void *)(segment + 1) > end || header->next != 6) return XDP_PASS;
    return judge(segment, swap(header->length) - (segment->size >> 4) * 4);
  }
  return XDP_PASS;
}
"""
PROGRAM = (
    PROGRAM.replace("XDP_PASS", "2").replace("XDP_DROP", "1").replace("struct xdp_md", "struct packet_view")
)
VIEW = "struct packet_view { u32 data, data_end, data_meta, device, queue, egress; };\n"
BPF_LINK_CREATE, XDP_ATTACH, GENERIC_XDP, SYS_BPF = 28, 37, 2, {"x86_64": 321, "aarch64": 280}
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """Return `result`; raise the C library's error if it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def attach(program: int, device: int) -> int:
    """Return a bpf link of the program on the device; it lives as long as the returned descriptor."""
    request = ctypes.create_string_buffer(
        struct.pack("=IIII48x", program, device, XDP_ATTACH, GENERIC_XDP), 64
    )
    return check(libc.syscall(SYS_BPF[os.uname().machine], BPF_LINK_CREATE, request, 64), "BPF_LINK_CREATE")


def device_index(name: str) -> int:
    """Return the device's number in the namespace of this process."""
    return check(int(libc.if_nametoindex(name.encode())) or -1, name)


def main(namespace: str, device: str) -> None:
    """Load, attach, and follow standard input until it ends."""
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    program = BPF(text=VIEW + PROGRAM, cflags=["-w"])
    function = program.load_func("drop", BPF.XDP)
    with open(f"/run/netns/{namespace}") as home:
        check(libc.setns(home.fileno(), CLONE_NEWNET), "setns")
    link = attach(function.fd, device_index(device))
    rules, counters = program["rules"], program["counters"]
    for line in sys.stdin:
        wanted = json.loads(line)
        if wanted:
            order = ("every", "mask", "value", "data", "port")
            rules[ctypes.c_int(0)] = rules.Leaf(*(wanted.get(name, 0) for name in order))
        counts = counters[ctypes.c_int(0)]
        print(json.dumps({"matched": counts.matched, "dropped": counts.dropped}), flush=True)
    os.close(link)


if __name__ == "__main__":
    main(*sys.argv[1:])
