package message

import "sort"

// Sizes of what surrounds an IKE message in an IP datagram, in octets.
const (
	ipv4HeaderLen   = 20
	ipv6HeaderLen   = 40
	udpHeaderLen    = 8
	nonESPMarkerLen = 4
)

// MaxMessageSize returns the largest IKE message in octets that fits into an IP datagram of
// maxDatagram octets: less the IP and UDP headers and, on port 4500, the non-ESP marker.
// RFC 7383, section 2.5.1, recommends datagrams of 1280 octets for IPv6 and 576 for IPv4.
func MaxMessageSize(maxDatagram int, ipv6, natT bool) int {
	n := maxDatagram - udpHeaderLen - ipv4HeaderLen
	if ipv6 {
		n = maxDatagram - udpHeaderLen - ipv6HeaderLen
	}
	if natT {
		n -= nonESPMarkerLen
	}
	return max(n, 0)
}

// Fragments encodes in as SKF fragments, each a complete message of at most maxMessage octets
// (RFC 7383, section 2.5): the content is split regardless of payload boundaries, the header
// is that of the whole message, and only the first fragment names the first payload.
// Errors: ErrDatagramSize, *EncodeError (more than MaxFragments), ErrSealedLength, the
// Protector's.
func (in Inner) Fragments(h Header, p Protector, maxMessage int) ([][]byte, error) {
	chunk := chunkSize(p, maxMessage)
	first := chunk
	if n := clearLen(in.Solution); n > 0 { // RFC 7383, section 2.5.3
		first = chunkSize(p, maxMessage-n)
	}
	if first <= 0 {
		return nil, ErrDatagramSize
	}
	rest := max(len(in.Plain)-first, 0)
	total := 1 + (rest+chunk-1)/chunk
	if total > MaxFragments {
		return nil, &EncodeError{Payload: PayloadSKF, Field: "number of fragments", Want: "at most 255; raise the datagram size", Got: total}
	}
	out := make([][]byte, 0, total)
	for i := range total {
		e := Encrypted{Number: uint16(i + 1), Total: uint16(total)}
		from, to, ps := first+(i-1)*chunk, first+i*chunk, (*PuzzleSolution)(nil)
		if i == 0 {
			from, ps, e.First = 0, in.Solution, in.First
		}
		b, err := appendSealed(nil, h, e, in.Plain[from:min(to, len(in.Plain))], p, ps)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// chunkSize returns how many octets of content fit into one fragment, -1 if not even none.
func chunkSize(p Protector, maxMessage int) int {
	room := min(maxMessage, MaxMessage) - HeaderLen - genericLen - fragmentHeaderLen
	if room < 0 {
		return -1
	}
	// SealedLen grows with its argument, and is at least it.
	return sort.Search(room+1, func(n int) bool { return p.SealedLen(n) > room }) - 1
}

// Fragment is one opened, authentic fragment.
type Fragment struct {
	Header        Header
	First         PayloadType
	Number, Total uint16
	Plain         []byte
	Reserved      byte // see Inner
}

// OpenFragment opens the SKF payload. Every error means that the message must be dropped
// silently: ErrNotEncrypted, ErrNotFragment, ErrNotAuthentic.
func (m *Message) OpenFragment(p Protector) (Fragment, error) {
	switch {
	case m.Encrypted == nil:
		return Fragment{}, ErrNotEncrypted
	case !m.Encrypted.IsFragment():
		return Fragment{}, ErrNotFragment
	}
	plain, err := m.open(p)
	if err != nil {
		return Fragment{}, err
	}
	return Fragment{
		Header: m.Header, First: m.Encrypted.First, Number: m.Encrypted.Number, Total: m.Encrypted.Total, Plain: plain, Reserved: m.reserved(),
	}, nil
}

// Reassembler collects the fragments of one message (RFC 7383, section 2.6). The zero value
// is ready; the owner calls Reset when the exchange is over or the reassembly timeout (the
// caller's clock) has run out. It holds at most MaxFragments fragments and MaxMessage octets.
type Reassembler struct {
	header   Header
	first    PayloadType
	reserved byte
	total    uint16
	size     int // octets of all parts
	parts    []part
}

// part is one stored fragment; parts are sorted by number.
type part struct {
	number uint16
	plain  []byte
}

// Pending returns how many fragments of how many are there; 0 and 0 when idle.
func (r *Reassembler) Pending() (have, total int) { return len(r.parts), int(r.total) }

// Reset forgets all fragments.
func (r *Reassembler) Reset() { *r = Reassembler{} }

// Wants reports with a nil error whether the fragment m is of use, before the work of
// opening it: RFC 7383, section 2.6, checks replays ahead of the ICV. It changes nothing.
// Errors, all for a silent drop: ErrNotFragment, ErrFragmentReplay, ErrFragmentStale,
// ErrFragmentMismatch.
func (r *Reassembler) Wants(m *Message) error {
	if m.Encrypted == nil || !m.Encrypted.IsFragment() {
		return ErrNotFragment
	}
	return r.wants(m.Header, m.Encrypted.Number, m.Encrypted.Total)
}

func (r *Reassembler) wants(h Header, number, total uint16) error {
	switch {
	case r.total == 0:
		return nil
	case h != r.header:
		// RFC 7383, section 2.5: the header is taken intact from the original message.
		return ErrFragmentMismatch
	case total < r.total:
		return ErrFragmentStale
	case total > r.total:
		return nil
	}
	if _, found := r.find(number); found {
		return ErrFragmentReplay
	}
	return nil
}

// find returns where the fragment is, or where it belongs.
func (r *Reassembler) find(number uint16) (int, bool) {
	i := sort.Search(len(r.parts), func(i int) bool { return r.parts[i].number >= number })
	return i, i < len(r.parts) && r.parts[i].number == number
}

// Add stores an authentic fragment, and copies it. When it was the last one missing, done is
// true, in holds First and Plain of the whole message (not yet parsed), and r is idle again.
// A fragment with a larger total starts the reassembly anew (RFC 7383, section 2.5.2).
// Errors: those of Wants; *SyntaxError for impossible numbers; ErrReassemblyLimit, after
// which r is idle.
func (r *Reassembler) Add(f Fragment) (in Inner, done bool, err error) {
	if f.Total == 0 || f.Number == 0 || f.Number > f.Total {
		return Inner{}, false, &SyntaxError{Payload: PayloadSKF, Field: "fragment number", Want: "1 to " + itoa(int(f.Total)), Got: int(f.Number)}
	}
	if err := r.wants(f.Header, f.Number, f.Total); err != nil {
		return Inner{}, false, err
	}
	if f.Total > r.total {
		*r = Reassembler{header: f.Header, total: f.Total}
	}
	if f.Total > MaxFragments || r.size+len(f.Plain) > MaxMessage {
		r.Reset()
		return Inner{}, false, ErrReassemblyLimit
	}
	i, _ := r.find(f.Number)
	r.parts = append(r.parts, part{})
	copy(r.parts[i+1:], r.parts[i:])
	r.parts[i] = part{number: f.Number, plain: append([]byte(nil), f.Plain...)}
	r.size += len(f.Plain)
	if f.Number == 1 {
		r.first, r.reserved = f.First, f.Reserved
	}
	if len(r.parts) < int(r.total) {
		return Inner{}, false, nil
	}
	in = Inner{First: r.first, Plain: make([]byte, 0, r.size), Reserved: r.reserved}
	for _, p := range r.parts {
		in.Plain = append(in.Plain, p.plain...)
	}
	r.Reset()
	return in, true, nil
}
