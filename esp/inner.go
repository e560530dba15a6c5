package esp

import "encoding/binary"

// inner takes the trailer off p (payload, padding, trailer) and checks what is left to be an IP
// packet (RFC 4303 section 3.4.4). Everything here was authenticated, so its time and its verdict
// tell an attacker nothing.
func inner(p *Packet) {
	b := p.Buf[p.Off : p.Off+p.Len]
	n := len(b) - trailerLen // not negative: the suite's alignment is at least 4
	pad := int(b[n])
	p.Next = b[n+1]
	if pad > n {
		p.Err = ErrMalformed
		return
	}
	n -= pad
	for i, x := range b[n : n+pad] { // section 2.4: 1, 2, 3 … SHOULD be checked
		if x != byte(i+1) {
			p.Err = ErrMalformed
			return
		}
	}
	if p.Next == NextNone { // section 2.6: payload is anything
		p.Err = ErrDummy
		return
	}
	n = innerLen(b[:n], p.Next)
	if n == 0 {
		p.Err = ErrMalformed
		return
	}
	p.Len = n // section 2.7: what is behind is TFC padding
}

// innerLen returns the length of the IP packet at the beginning of b as its header says, 0 if
// it does not fit into b or is not of the version that next says.
func innerLen(b []byte, next uint8) int {
	if len(b) < 20 {
		return 0
	}
	switch {
	case next == NextIPv4 && b[0]>>4 == 4:
		n, head := int(binary.BigEndian.Uint16(b[2:])), int(b[0]&15)*4
		if head < 20 || n < head || n > len(b) {
			return 0
		}
		return n
	case next == NextIPv6 && b[0]>>4 == 6 && len(b) >= 40:
		n := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if n > len(b) {
			return 0
		}
		return n
	}
	return 0
}
