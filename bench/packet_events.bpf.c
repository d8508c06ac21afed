// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Sends an event for each received packet, as a baseline for the latency lens. The loader puts the slice of
// struct sk_buff before this file.

struct event {
  u64 time;
  u32 source, destination, bytes;
};
BPF_RINGBUF_OUTPUT(events, 256);

int tp_btf__netif_receive_skb(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct event event = {.time = bpf_ktime_get_ns(), .bytes = skb->len};
  bpf_probe_read_kernel(&event.source, 2 * sizeof(u32), (void *)skb->data + 12);
  events.ringbuf_output(&event, sizeof(event), 0);
  return 0;
}
