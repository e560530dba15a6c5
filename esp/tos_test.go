package esp

import (
	"encoding/binary"
	"testing"
)

// RFC 6040, figure 4, written out row by row as printed.
func TestDecapECNFigure4(t *testing.T) {
	outer := []uint8{notECT, ect0, ect1, ce}
	const drop = 0xff
	for _, row := range []struct {
		inner uint8
		want  [4]uint8
		alarm [4]bool
	}{
		{notECT, [4]uint8{notECT, notECT, notECT, drop}, [4]bool{false, true, true, true}},
		{ect0, [4]uint8{ect0, ect0, ect1, ce}, [4]bool{}},
		{ect1, [4]uint8{ect1, ect1, ect1, ce}, [4]bool{false, true, false, false}},
		{ce, [4]uint8{ce, ce, ce, ce}, [4]bool{false, false, true, false}},
	} {
		for i, out := range outer {
			for _, dscp := range []uint8{0, 0x2e, 0x3f} {
				for _, outDSCP := range []uint8{0, 0x15} {
					for _, pkt := range [][]byte{ipv4(60), ipv6(60)} {
						setTOS(pkt, dscp<<2|row.inner)
						dropped := DecapECN(outDSCP<<2|out, pkt)
						if dropped != (row.want[i] == drop) {
							t.Fatalf("inner %d outer %d: dropped %t", row.inner, out, dropped)
						}
						if dropped {
							continue
						}
						if tos, _ := tosOf(pkt); tos != dscp<<2|row.want[i] {
							t.Fatalf("inner %d outer %d: TOS %#x, want %#x", row.inner, out, tos, dscp<<2|row.want[i])
						}
						if !validHeader(pkt) {
							t.Fatalf("inner %d outer %d: header checksum broken", row.inner, out)
						}
						if got := OuterTOS(pkt); got != dscp<<2|row.want[i] {
							t.Fatalf("OuterTOS %#x", got)
						}
					}
				}
			}
			if got := ECNAnomaly(out, row.inner); got != row.alarm[i] {
				t.Errorf("anomaly of inner %d outer %d: %t", row.inner, out, got)
			}
		}
	}
}

func TestTOSOfNonIP(t *testing.T) {
	for _, b := range [][]byte{nil, {0x45}, ipv4(20)[:19], ipv6(40)[:39], append([]byte{0x55}, make([]byte, 60)...)} {
		if OuterTOS(b) != 0 || !DecapECN(0, b) {
			t.Errorf("%x: TOS %#x or not dropped", b, OuterTOS(b))
		}
	}
}

// setTOS sets the octet and, for IPv4, computes the whole header checksum.
func setTOS(pkt []byte, tos uint8) {
	if pkt[0]>>4 == 6 {
		pkt[0], pkt[1] = 0x60|tos>>4, tos<<4|pkt[1]&15
		return
	}
	pkt[1] = tos
	pkt[10], pkt[11] = 0, 0
	binary.BigEndian.PutUint16(pkt[10:], ^slowSum(pkt[:20]))
}

func slowSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func validHeader(pkt []byte) bool {
	return pkt[0]>>4 == 6 || slowSum(pkt[:20]) == 0xffff
}

func FuzzDecapECN(f *testing.F) {
	f.Add(uint8(3), ipv4(20))
	f.Add(uint8(1), ipv6(40))
	f.Add(uint8(2), []byte{})
	f.Fuzz(func(t *testing.T, outer uint8, pkt []byte) {
		before := append([]byte(nil), pkt...)
		tos, ok := tosOf(pkt)
		drop := DecapECN(outer, pkt)
		if !ok {
			if !drop {
				t.Fatal("not an IP packet, not dropped")
			}
			return
		}
		if want := tos&3 == 0 && outer&3 == 3; drop != want {
			t.Fatalf("dropped %t", drop)
		}
		after, _ := tosOf(pkt)
		if drop && after != tos || after>>2 != tos>>2 || after&3 < tos&3 && tos&3 != ect0 || tos&3 == 0 && after&3 != 0 {
			t.Fatalf("TOS %#x became %#x with outer %#x", tos, after, outer)
		}
		// Nothing else changes, and a right checksum stays right.
		if pkt[0]>>4 == 4 {
			if (slowSum(before[:20]) == 0xffff) != (slowSum(pkt[:20]) == 0xffff) && after != tos {
				t.Fatalf("checksum validity changed: % x -> % x", before[:20], pkt[:20])
			}
			before[1], before[10], before[11] = pkt[1], pkt[10], pkt[11]
		} else {
			before[1] = before[1]&^0x30 | pkt[1]&0x30
		}
		if string(before) != string(pkt) {
			t.Fatal("more than the ECN field changed")
		}
	})
}
