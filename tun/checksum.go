package tun

import (
	"encoding/binary"
	"math/bits"
)

// Offsets and protocol numbers used all over the package.
const (
	protoTCP = 6
	protoUDP = 17

	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8

	tcpCsumOffset = 16
	udpCsumOffset = 6
)

// onesSum returns the folded one's complement sum (RFC 1071) of b plus initial, not inverted. The
// sum does not depend on the byte order in which it is made (RFC 1071 section 2 B), so words are
// loaded as they lie and the result is swapped once.
func onesSum(b []byte, initial uint16) uint16 {
	return bits.ReverseBytes16(fold(wordSum(b) + uint64(bits.ReverseBytes16(initial))))
}

// scalarSum is wordSum without vector instructions, in one's complement of 64 bits and eight octets
// at a time.
func scalarSum(b []byte) uint64 {
	var sum, carry uint64
	for len(b) >= 64 {
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b), 0)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[8:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[16:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[24:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[32:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[40:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[48:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b[56:]), carry)
		sum += carry
		b = b[64:]
	}
	// What is left is too short to overflow when added up in halves, and so is what is done with
	// the result.
	sum = sum>>32 + sum&0xffffffff
	for len(b) >= 8 {
		v := binary.LittleEndian.Uint64(b)
		sum += v>>32 + v&0xffffffff
		b = b[8:]
	}
	if len(b) >= 4 {
		sum += uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		sum += uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		sum += uint64(b[0])
	}
	return sum
}

// Checksum returns the Internet checksum's sum (RFC 1071) of b and initial: folded to 16 bits, not
// inverted, in host byte order. So sums are put together: Checksum(b, Checksum(a, 0)) is that of
// a and b if a has an even number of octets. What goes into a header is ^Checksum, big-endian (in
// UDP 0xffff instead of 0); what is right with its checksum gives 0xffff.
func Checksum(b []byte, initial uint16) uint16 { return onesSum(b, initial) }

// fold adds up the four 16-bit parts of sum in one's complement. Zero comes out only if sum is zero.
func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

// addOnes adds two 16-bit numbers in one's complement.
func addOnes(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// pseudoSum returns the sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) of
// the IP packet pkt for a transport header and payload of n octets.
func pseudoSum(pkt []byte, proto uint8, n int) uint16 {
	addrs := pkt[12:20]
	if pkt[0]>>4 == 6 {
		addrs = pkt[8:40]
	}
	return addOnes(onesSum(addrs, uint16(proto)), uint16(n))
}

// putIPv4Checksum computes the header checksum of an IPv4 packet.
func putIPv4Checksum(head []byte) {
	head[10], head[11] = 0, 0
	binary.BigEndian.PutUint16(head[10:], ^onesSum(head, 0))
}
