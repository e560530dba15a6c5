package ike

import (
	"fmt"
	"slices"
	"strings"
)

// maxSelectors bounds the selectors of one payload that are looked at. The wire format allows
// 255 (RFC 7296, section 3.13).
const maxSelectors = 255

// maxWork bounds the comparisons for one answer: both ends can have 255 selectors, and all of them can
// overlap.
const maxWork = 1 << 20

// narrow returns what policy and proposal have in common (RFC 7296, section 2.9): every
// intersection of two selectors, without those that another one covers, in the order of the
// proposal, so that the selector of the triggering packet stays first. Empty: nothing in common.
func narrow(proposed, policy []Selector) []Selector {
	var out []Selector
	work := 0
	for _, p := range proposed {
		for _, q := range policy {
			if work += 1 + len(out); work > maxWork {
				return out // a part of what is in common is no less correct
			}
			s, ok := intersect(p, q)
			if !ok || slices.ContainsFunc(out, func(o Selector) bool { return covers(o, s) }) {
				continue
			}
			out = slices.DeleteFunc(out, func(o Selector) bool { return covers(s, o) })
			out = append(out, s)
			if len(out) == maxSelectors {
				return out
			}
		}
	}
	return out
}

// within tells whether all traffic of a is traffic of b: what a responder narrowed must not be wider
// than what we proposed. A selector of a may lie in several of b together, as a range in two halves of
// it; one of all protocols only in others of all protocols. Nothing is within nothing.
func within(a, b []Selector) bool {
	for _, s := range a {
		if !slices.ContainsFunc(b, func(o Selector) bool { return covers(o, s) }) && !coveredByAll(s, b) {
			return false
		}
	}
	return len(a) > 0
}

// maxPieces bounds the arithmetic on selectors that peers make up.
const maxPieces = 1024

// coveredByAll takes the selectors of list out of s, one after the other, and tells whether nothing is
// left.
func coveredByAll(s Selector, list []Selector) bool {
	left := []Selector{s}
	for _, o := range list {
		var next []Selector
		for _, p := range left {
			next = appendWithout(next, p, o)
		}
		if left = next; len(left) == 0 {
			return true
		}
		if len(left) > maxPieces {
			return false
		}
	}
	return false
}

// appendWithout appends what is left of s without o.
func appendWithout(dst []Selector, s, o Selector) []Selector {
	in, ok := intersect(s, o)
	if !ok || o.Proto != 0 && s.Proto == 0 {
		return append(dst, s)
	}
	piece := func(edit func(*Selector)) {
		p := s
		edit(&p)
		dst = append(dst, p)
	}
	if s.Start != in.Start {
		piece(func(p *Selector) { p.End = in.Start.Prev() })
	}
	if s.End != in.End {
		piece(func(p *Selector) { p.Start = in.End.Next() })
	}
	s.Start, s.End = in.Start, in.End
	switch {
	case anyPort(o) || opaque(s):
	case opaque(o): // of any port: all that can be named are left
		piece(func(p *Selector) { p.StartPort, p.EndPort = 0, 65535 })
	default:
		if s.StartPort < in.StartPort {
			piece(func(p *Selector) { p.EndPort = in.StartPort - 1 })
		}
		if s.EndPort > in.EndPort {
			piece(func(p *Selector) { p.StartPort = in.EndPort + 1 })
		}
		if anyPort(s) {
			piece(func(p *Selector) { p.StartPort, p.EndPort = 65535, 0 })
		}
	}
	return dst
}

// pairUp leaves out what no packet can have: selectors of a family, or a protocol, that the other end
// has none of. A packet has one of each at both ends (RFC 7296, section 3.13).
func pairUp(local, remote []Selector) (l, r []Selector) {
	meet := func(s Selector) func(Selector) bool {
		return func(o Selector) bool {
			return s.Start.Is4() == o.Start.Is4() && (s.Proto == o.Proto || s.Proto == 0 || o.Proto == 0)
		}
	}
	alone := func(others []Selector) func(Selector) bool {
		return func(s Selector) bool { return !slices.ContainsFunc(others, meet(s)) }
	}
	l = slices.DeleteFunc(slices.Clone(local), alone(remote))
	r = slices.DeleteFunc(slices.Clone(remote), alone(local))
	return l, r
}

func intersect(a, b Selector) (Selector, bool) {
	s := a
	switch {
	case a.Proto == b.Proto:
	case a.Proto == 0:
		s.Proto = b.Proto
	case b.Proto == 0:
	default:
		return Selector{}, false
	}
	switch {
	case opaque(a) || opaque(b):
		// RFC 7296, section 3.13.1: OPAQUE is a value of its own; only it and "any" match.
		if !(opaque(a) || anyPort(a)) || !(opaque(b) || anyPort(b)) {
			return Selector{}, false
		}
		s.StartPort, s.EndPort = 65535, 0
	default:
		s.StartPort = max(a.StartPort, b.StartPort)
		s.EndPort = min(a.EndPort, b.EndPort)
		if s.StartPort > s.EndPort {
			return Selector{}, false
		}
	}
	if a.Start.Is4() != b.Start.Is4() {
		return Selector{}, false
	}
	if b.Start.Compare(s.Start) > 0 {
		s.Start = b.Start
	}
	if b.End.Compare(s.End) < 0 {
		s.End = b.End
	}
	return s, s.Start.Compare(s.End) <= 0
}

// covers tells whether all traffic of in is traffic of out.
func covers(out, in Selector) bool {
	if out.Proto != 0 && out.Proto != in.Proto || out.Start.Is4() != in.Start.Is4() {
		return false
	}
	switch {
	case anyPort(out):
	case opaque(out) || opaque(in):
		if opaque(out) != opaque(in) {
			return false
		}
	case in.StartPort < out.StartPort || in.EndPort > out.EndPort:
		return false
	}
	return out.Start.Compare(in.Start) <= 0 && in.End.Compare(out.End) <= 0
}

func opaque(s Selector) bool  { return s.StartPort == 65535 && s.EndPort == 0 }
func anyPort(s Selector) bool { return s.StartPort == 0 && s.EndPort == 65535 }

// check tells what is wrong with a selector of the configuration or of a peer.
func (s Selector) check() error {
	switch {
	case !s.Start.IsValid() || !s.End.IsValid():
		return fmt.Errorf("selector %v: an address is missing", s)
	case s.Start.Is4() != s.End.Is4() || s.Start.Is4In6() || s.End.Is4In6() || s.Start.Zone() != "" || s.End.Zone() != "":
		return fmt.Errorf("selector %v: start and end must be of one address family, without a zone", s)
	case s.Start.Compare(s.End) > 0:
		return fmt.Errorf("selector %v: the start address lies behind the end address", s)
	case s.StartPort > s.EndPort && !opaque(s):
		return fmt.Errorf("selector %v: the start port lies behind the end port", s)
	case s.Proto == 0 && !anyPort(s):
		return fmt.Errorf("selector %v: ports without a protocol; expected 0 to 65535 (RFC 7296, section 3.13.1)", s)
	}
	return nil
}

func joinTS(ts []Selector) string {
	if len(ts) == 0 {
		return "(none)"
	}
	var out []string
	for i, s := range ts {
		if i == 8 {
			out = append(out, fmt.Sprintf("… %d more", len(ts)-i))
			break
		}
		out = append(out, s.String())
	}
	return strings.Join(out, ", ")
}
