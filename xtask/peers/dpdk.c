/* What DPDK takes to cut and to merge a superframe of TCP/IPv4 in VXLAN/IPv4: its segmentation and reassembly
 * libraries, the checksums that they leave to their users, and the copy into one piece that a ring of ours would need.
 *
 * Prints lines of `name nanoseconds-per-superframe`, each the median of rounds. What is prepared for a round is
 * not timed. Usage: dpdk CPU ROUNDS TIMES
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_gro.h>
#include <rte_gso.h>
#include <rte_ip.h>
#include <rte_mbuf.h>
#include <rte_tcp.h>
#include <rte_udp.h>

enum {
  MSS = 1448,
  SEGMENTS = 45,
  PAYLOAD = MSS * SEGMENTS,
  ETH = 14,
  IP = 20,
  UDP = 8,
  VXLAN = 8,
  TCP = 32,
  OUTER = ETH + IP + UDP + VXLAN,
  INNER = ETH + IP + TCP,
  HEADERS = OUTER + INNER,
  WIRE = HEADERS + MSS,
  ROUNDS_MAX = 101,
};

static struct rte_mempool *direct, *indirect, *large;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

static void fail(const char *what) {
  fprintf(stderr, "dpdk: %s\n", what);
  exit(1);
}

static struct rte_mempool *pool(const char *name, unsigned count, unsigned room) {
  struct rte_mempool *made = rte_pktmbuf_pool_create(name, count, 0, 0, room, SOCKET_ID_ANY);
  if (!made)
    fail("no memory for packets");
  return made;
}

static void put_ip(uint8_t *at, uint8_t protocol, uint16_t length, uint32_t src, uint32_t dst) {
  struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)at;
  memset(ip, 0, sizeof *ip);
  ip->version_ihl = 0x45;
  ip->total_length = rte_cpu_to_be_16(length);
  ip->packet_id = rte_cpu_to_be_16(1);
  ip->time_to_live = 64;
  ip->next_proto_id = protocol;
  ip->src_addr = rte_cpu_to_be_32(src);
  ip->dst_addr = rte_cpu_to_be_32(dst);
  ip->hdr_checksum = rte_ipv4_cksum(ip);
}

static void put_eth(uint8_t *at, uint8_t src, uint8_t dst) {
  const uint8_t header[ETH] = {2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, src, 8, 0};
  memcpy(at, header, ETH);
}

/* The headers around a tenant's frame of so many bytes of payload. */
static void put_outer(uint8_t *at, uint16_t payload) {
  const uint8_t vxlan[VXLAN] = {8, 0, 0, 0, 0, 0, 100, 0};
  struct rte_udp_hdr *udp = (struct rte_udp_hdr *)(at + ETH + IP);
  put_eth(at, 1, 2);
  put_ip(at + ETH, IPPROTO_UDP, IP + UDP + VXLAN + INNER + payload, 0xc6120001, 0xc6120002);
  udp->src_port = rte_cpu_to_be_16(50000);
  udp->dst_port = rte_cpu_to_be_16(4789);
  udp->dgram_len = rte_cpu_to_be_16(UDP + VXLAN + INNER + payload);
  udp->dgram_cksum = 0;
  memcpy(at + ETH + IP + UDP, vxlan, VXLAN);
}

static void put_inner(uint8_t *at, uint16_t payload) {
  const uint8_t timestamps[12] = {1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2};
  struct rte_tcp_hdr *tcp = (struct rte_tcp_hdr *)(at + ETH + IP);
  put_eth(at, 3, 4);
  put_ip(at + ETH, IPPROTO_TCP, IP + TCP + payload, 0x0a000001, 0x0a000002);
  memset(tcp, 0, sizeof *tcp);
  tcp->src_port = rte_cpu_to_be_16(40000);
  tcp->dst_port = rte_cpu_to_be_16(5201);
  tcp->sent_seq = rte_cpu_to_be_32(1);
  tcp->recv_ack = rte_cpu_to_be_32(1);
  tcp->data_off = TCP / 4 << 4;
  tcp->tcp_flags = RTE_TCP_ACK_FLAG;
  tcp->rx_win = rte_cpu_to_be_16(512);
  memcpy(tcp + 1, timestamps, sizeof timestamps);
}

static void describe(struct rte_mbuf *m) {
  m->outer_l2_len = ETH;
  m->outer_l3_len = IP;
  m->l2_len = UDP + VXLAN + ETH;
  m->l3_len = IP;
  m->l4_len = TCP;
}

/* Fills in the sums of a frame in one piece: of the inner header and segment, and of the outer datagram. */
static void put_sums(struct rte_mbuf *m, int outer) {
  uint8_t *at = rte_pktmbuf_mtod(m, uint8_t *);
  struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(at + ETH);
  struct rte_udp_hdr *udp = (struct rte_udp_hdr *)(at + ETH + IP);
  struct rte_ipv4_hdr *inner = (struct rte_ipv4_hdr *)(at + OUTER + ETH);
  struct rte_tcp_hdr *tcp = (struct rte_tcp_hdr *)(at + OUTER + ETH + IP);
  inner->hdr_checksum = 0;
  inner->hdr_checksum = rte_ipv4_cksum(inner);
  tcp->cksum = 0;
  tcp->cksum = rte_ipv4_udptcp_cksum(inner, tcp);
  ip->hdr_checksum = 0;
  ip->hdr_checksum = rte_ipv4_cksum(ip);
  udp->dgram_cksum = 0;
  if (outer)
    udp->dgram_cksum = rte_ipv4_udptcp_cksum(ip, udp);
}

static int sums_hold(struct rte_mbuf *m, int outer) {
  uint8_t *at = rte_pktmbuf_mtod(m, uint8_t *);
  struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(at + ETH);
  struct rte_ipv4_hdr *inner = (struct rte_ipv4_hdr *)(at + OUTER + ETH);
  if (rte_ipv4_udptcp_cksum_verify(inner, at + OUTER + ETH + IP))
    return 0;
  return !outer || !rte_ipv4_udptcp_cksum_verify(ip, at + ETH + IP);
}

static int cut(struct rte_mbuf *frame, struct rte_mbuf **out) {
  struct rte_gso_ctx context = {
      .direct_pool = direct,
      .indirect_pool = indirect,
      .gso_types = RTE_ETH_TX_OFFLOAD_VXLAN_TNL_TSO | RTE_ETH_TX_OFFLOAD_TCP_TSO,
      .gso_size = WIRE,
  };
  frame->ol_flags = RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_OUTER_IPV4 |
                    RTE_MBUF_F_TX_TUNNEL_VXLAN;
  frame->tso_segsz = MSS;
  return rte_gso_segment(frame, &context, out, 64);
}

/* Nanoseconds of one superframe that is encapsulated, cut, made whole and summed. */
static double time_cut(struct rte_mbuf *frame, int times, int whole, int sums) {
  struct rte_mbuf *out[64];
  double spent = 0;
  for (int i = 0; i < times; i++) {
    double start = now();
    put_outer(rte_pktmbuf_mtod(frame, uint8_t *), PAYLOAD);
    int count = cut(frame, out);
    if (count != SEGMENTS)
      fail("rte_gso_segment made another number of segments");
    for (int n = 0; n < count; n++) {
      if (whole && rte_pktmbuf_linearize(out[n]))
        fail("no room for a segment in one piece");
      if (sums)
        put_sums(out[n], sums > 1);
    }
    spent += now() - start;
    if (whole && sums && !sums_hold(out[SEGMENTS - 1], sums > 1))
      fail("a segment has a wrong sum");
    for (int n = 0; n < count; n++)
      rte_pktmbuf_free(out[n]);
  }
  return spent / times;
}

/* Nanoseconds of segments that are verified, merged and put into one piece. */
static double time_merge(struct rte_mbuf *frame, int times, int sums, uint8_t *whole) {
  struct rte_gro_param param = {
      .gro_types = RTE_GRO_IPV4_VXLAN_TCP_IPV4,
      .max_flow_num = 4,
      .max_item_per_flow = 64,
  };
  struct rte_mbuf *cut_to[64], *in[64];
  double spent = 0;
  put_outer(rte_pktmbuf_mtod(frame, uint8_t *), PAYLOAD);
  if (cut(frame, cut_to) != SEGMENTS)
    fail("rte_gso_segment made another number of segments");
  for (int n = 0; n < SEGMENTS; n++) {
    if (rte_pktmbuf_linearize(cut_to[n]))
      fail("no room for a segment in one piece");
    put_sums(cut_to[n], 1);
  }
  for (int i = 0; i < times; i++) {
    for (int n = 0; n < SEGMENTS; n++) {
      in[n] = rte_pktmbuf_copy(cut_to[n], direct, 0, UINT32_MAX);
      if (!in[n])
        fail("no memory for packets");
      describe(in[n]);
      in[n]->packet_type = RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV4 | RTE_PTYPE_L4_UDP |
                           RTE_PTYPE_TUNNEL_VXLAN | RTE_PTYPE_INNER_L2_ETHER |
                           RTE_PTYPE_INNER_L3_IPV4 | RTE_PTYPE_INNER_L4_TCP;
    }
    double start = now();
    for (int n = 0; n < SEGMENTS; n++)
      if (sums && !sums_hold(in[n], sums > 1))
        fail("a segment has a wrong sum");
    int count = rte_gro_reassemble_burst(in, SEGMENTS, &param);
    if (count != 1)
      fail("rte_gro_reassemble_burst merged not all");
    uint32_t at = 0;
    for (struct rte_mbuf *m = in[0]; m; m = m->next) {
      memcpy(whole + at, rte_pktmbuf_mtod(m, uint8_t *), m->data_len);
      at += m->data_len;
    }
    spent += now() - start;
    if (at != HEADERS + PAYLOAD)
      fail("bytes are missing");
    rte_pktmbuf_free(in[0]);
  }
  for (int n = 0; n < SEGMENTS; n++)
    rte_pktmbuf_free(cut_to[n]);
  return spent / times;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void tell(const char *name, double *rounds, int count) {
  qsort(rounds, count, sizeof *rounds, by_value);
  printf("%s %.1f\n", name, rounds[count / 2]);
}

int main(int argc, char **argv) {
  if (argc != 4)
    fail("usage: dpdk CPU ROUNDS TIMES");
  int rounds = atoi(argv[2]), times = atoi(argv[3]);
  if (rounds < 1 || rounds > ROUNDS_MAX || times < 1)
    fail("legal is 1 to 101 rounds of at least 1 time");
  char *eal[] = {"dpdk",     "-l",           argv[1],       "--no-huge",   "-m",      "256",
                 "--no-pci", "--no-shconf",  "--no-telemetry", "--log-level", "error"};
  if (rte_eal_init(sizeof eal / sizeof *eal, eal) < 0)
    fail("the environment does not start");
  direct = pool("direct", 1023, RTE_PKTMBUF_HEADROOM + 2048);
  indirect = pool("indirect", 1023, 0);
  large = pool("large", 3, UINT16_MAX);
  struct rte_mbuf *frame = rte_pktmbuf_alloc(large);
  uint8_t *whole = malloc(HEADERS + PAYLOAD);
  if (!frame || !whole || !rte_pktmbuf_append(frame, HEADERS + PAYLOAD))
    fail("no memory for a superframe");
  put_inner(rte_pktmbuf_mtod_offset(frame, uint8_t *, OUTER), PAYLOAD);
  memset(rte_pktmbuf_mtod_offset(frame, uint8_t *, HEADERS), 0x5a, PAYLOAD);
  describe(frame);

  double gso[4][ROUNDS_MAX], gro[3][ROUNDS_MAX];
  for (int round = 0; round < rounds; round++) {
    gso[0][round] = time_cut(frame, times, 0, 0);
    gso[1][round] = time_cut(frame, times, 1, 0);
    gso[2][round] = time_cut(frame, times, 1, 1);
    gso[3][round] = time_cut(frame, times, 1, 2);
    for (int sums = 0; sums < 3; sums++)
      gro[sums][round] = time_merge(frame, times, sums, whole);
  }
  tell("cut", gso[0], rounds);
  tell("cut-whole", gso[1], rounds);
  tell("cut-whole-inner-sum", gso[2], rounds);
  tell("cut-whole-both-sums", gso[3], rounds);
  tell("merge-whole", gro[0], rounds);
  tell("merge-whole-inner-sum", gro[1], rounds);
  tell("merge-whole-both-sums", gro[2], rounds);
  return 0;
}
