package kernel

import (
	"net/netip"
	"time"
)

// Event is something that Watch saw and mended.
type Event struct {
	Time time.Time
	// Code is stable: "restored" (our table, routes, rule or sysctls had been changed or removed
	// from outside and are back), "restore-failed" (Err says why; it is tried again with the next
	// change), "interface" (a zone's interface appeared and was set up).
	Code   string
	Detail string
	Err    error
}

// Refusal is one packet that the kernel refused. They are sampled: the kernel sends at most 20
// per second and reason (bursts of 50); Counters has the exact numbers.
type Refusal struct {
	Time     time.Time
	Reason   Reason
	Hook     string // prerouting, input, forward, output, postrouting
	In, Out  string // interface names, empty where not known at that hook
	Src, Dst netip.Addr
	Proto    uint8  // upper-layer protocol number
	SrcPort  uint16 // TCP, UDP, SCTP, UDP-Lite; for ICMP the type
	DstPort  uint16 // for ICMP the code
	NoPorts  bool   // non-first fragment, or another protocol
	Length   int    // of the IP packet, bytes
}
