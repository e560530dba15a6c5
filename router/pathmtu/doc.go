// Package pathmtu keeps packets from being too big: it knows the path MTU to each peer and does
// to inner packets what a router does when a link is smaller than a packet. It has no I/O and no
// clock; time is an argument.
//
// # The outer path
//
// A [Path] is what is known of the way to one peer. Its [Path.MTU] is the length of the longest
// outer IP packet, header included, that goes there in one piece; [InnerMTU] makes of it the
// longest inner packet. A path begins with the MTU of the link that its route uses and is lowered
// by three witnesses that are not equally good:
//
//   - the own kernel ([Path.LocalTooBig], [Path.SetLink]): trusted;
//   - "fragmentation needed" and "packet too big" from the network ([ParseOuter], [RuleFor],
//     [Path.TooBig]): anybody can send these, so only what quotes a packet that was sent lately is
//     believed, down to a floor and at a bounded rate (RFC 4301, section 6.1.1; RFC 8201, section 4);
//   - a probe that the peer answered or did not answer ([Path.NeedProbe], [Path.ProbeResult]):
//     authenticated by whoever carries it, and the only one that finds a black hole, a path that
//     swallows long packets without a word (RFC 8899).
//
// What is lowered is tried again after ten minutes (RFC 1191, section 6.3; RFC 4301, section
// 8.2.2).
//
// # Inner packets
//
// [Judge] says what is to be done with a packet that may be too long for its tunnel (RFC 4301,
// section 8.2.1): [FragmentIPv4], [TooBig], or the outer packet is fragmented, which happens only
// to packets that no sender can be asked to make shorter. [ClampMSS] spares TCP the experience.
// [Unreachable] is the general ICMP error. These are functions on octets: they never allocate,
// and never panic, whatever the octets are.
//
// An inner packet may be a super-packet of the TUN device (one header, many segments); lengths of
// segments are given beside the packet then. Checksums of packets must be complete, as
// [ClampMSS] changes them by a difference.
package pathmtu
