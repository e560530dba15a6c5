package esp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// FuzzOpen gives any octets to Open, as they are and, so that the fuzzer sees what lies behind the
// integrity check, as the plaintext of an authentic packet.
func FuzzOpen(f *testing.F) {
	for i := range suites {
		o, _ := pair(f, params(i, i%2 == 0))
		f.Add(uint8(i), i%2 == 0, seal(f, o, ipv4(40), NextIPv4))
		f.Add(uint8(i), i%2 == 0, append(ipv4(22), 1, 2, 3, 4, 5, 6, 7, 8, 8, 4))
		f.Add(uint8(i), i%2 == 0, append(ipv6(40), 1, 2, 3, 4, 5, 6, 6, 41))
	}
	f.Fuzz(func(t *testing.T, suite uint8, esn bool, data []byte) {
		p := params(int(suite)%len(suites), esn)
		o, in := pair(t, p)
		buf := bytes.Clone(data)
		start, end, _, err := in.Open(buf, 0, len(buf))
		if err == nil {
			// Only the seeds can be authentic.
			if start < o.Headroom() || end > len(data) || end < start {
				t.Fatalf("range %d:%d of %d", start, end, len(data))
			}
		} else if c := in.Counters(); c.Drops()+c.Dummy != 1 {
			t.Fatalf("%v counted as %+v", err, c)
		}

		body := data[:len(data)&^(o.t.align-1)]
		if len(body) == 0 {
			return
		}
		w, err := o.t.get()
		if err != nil {
			t.Fatal(err)
		}
		// A packet whose payload, padding and trailer are the fuzzer's: seal what is before the
		// last octets so that the trailer that seal writes is overwritten by body's own.
		pkt := authentic(o, w, body, esn)
		_, in = pair(t, p)
		start, end, next, err := in.Open(pkt, 0, len(pkt))
		switch {
		case err == nil:
			if next != NextIPv4 && next != NextIPv6 || innerLen(pkt[start:end], next) != end-start {
				t.Fatalf("next %d, range %d:%d", next, start, end)
			}
			if !bytes.Equal(pkt[start:end], body[:end-start]) {
				t.Fatal("inner packet differs")
			}
		case errors.Is(err, ErrMalformed), errors.Is(err, ErrDummy):
		default:
			t.Fatalf("authentic packet: %v", err)
		}
		if in.Counters().Packets != 1 {
			t.Fatalf("%v: counters %+v", err, in.Counters())
		}
	})
}

// authentic encrypts body as it is, trailer included.
func authentic(o *Outbound, w *worker, body []byte, esn bool) []byte {
	t := &o.t
	pkt := make([]byte, t.headroom()+len(body)+t.icv)
	copy(pkt[t.headroom():], body)
	copy(pkt, []byte{testSPI >> 24, testSPI >> 16 & 0xff, testSPI >> 8 & 0xff, testSPI & 0xff, 0, 0, 0, 1})
	if w.cbc != nil {
		w.cbc.seal(pkt, t.headroom(), t.icv, 1, esn)
		return pkt
	}
	aad := pkt[:8]
	if esn {
		aad = []byte{pkt[0], pkt[1], pkt[2], pkt[3], 0, 0, 0, 0, 0, 0, 0, 1}
	}
	at := t.headroom()
	binary.BigEndian.PutUint64(w.nonce[4:], t.iv(pkt, 1))
	w.aead.Seal(pkt[at:at], w.nonce[:], pkt[at:at+len(body)], aad)
	return pkt
}

// FuzzClassify: no datagram makes the demultiplexer look beyond its end.
func FuzzClassify(f *testing.F) {
	f.Add([]byte{0xff})
	f.Add([]byte{0, 0, 0, 0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, ok := SPIOf(b)
		if (Classify(b) == KindESP) != ok {
			t.Fatalf("Classify %d, SPIOf %t", Classify(b), ok)
		}
	})
}
