package esp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// suites are all that the package speaks.
var suites = []struct {
	name        string
	encr, integ uint16
	key, mac    int // octets of key material
}{
	{"aes128gcm16", EncrAESGCM16, IntegNone, 20, 0},
	{"aes192gcm16", EncrAESGCM16, IntegNone, 28, 0},
	{"aes256gcm16", EncrAESGCM16, IntegNone, 36, 0},
	{"chacha20poly1305", EncrChaCha20Poly1305, IntegNone, 36, 0},
	{"aes128-sha256", EncrAESCBC, IntegSHA256_128, 16, 32},
	{"aes192-sha384", EncrAESCBC, IntegSHA384_192, 24, 48},
	{"aes256-sha512", EncrAESCBC, IntegSHA512_256, 32, 64},
	{"aes128gcm16iiv", EncrAESGCM16IIV, IntegNone, 20, 0},
	{"aes256gcm16iiv", EncrAESGCM16IIV, IntegNone, 36, 0},
	{"chacha20poly1305iiv", EncrChaCha20Poly1305IIV, IntegNone, 36, 0},
}

const testSPI = 0xc0ffee01

// params returns the parameters of suites[i] with keys that differ everywhere.
func params(i int, esn bool) Params {
	s := suites[i]
	p := Params{SPI: testSPI, Encr: s.encr, Integ: s.integ, ESN: esn}
	for k := range s.key {
		p.Key = append(p.Key, byte(k*7+i+1))
	}
	for k := range s.mac {
		p.IntegKey = append(p.IntegKey, byte(k*5+i+2))
	}
	return p
}

type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func pair(t tb, p Params) (*Outbound, *Inbound) {
	t.Helper()
	o, err := NewOutbound(p)
	if err != nil {
		t.Fatal(err)
	}
	in, err := NewInbound(p)
	if err != nil {
		t.Fatal(err)
	}
	return o, in
}

// ipv4 and ipv6 make packets of n octets altogether.
func ipv4(n int) []byte {
	b := make([]byte, n)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	b[8], b[9] = 64, 17
	copy(b[12:], []byte{10, 1, 0, 1, 10, 2, 0, 1})
	for i := 20; i < n; i++ {
		b[i] = byte(i * 3)
	}
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return b
}

func ipv6(n int) []byte {
	b := make([]byte, n)
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(n-40))
	b[6], b[7] = 17, 64
	for i := 8; i < n; i++ {
		b[i] = byte(i * 5)
	}
	return b
}

// seal seals a copy of pkt in a buffer of exactly the promised size and returns the ESP packet.
func seal(t tb, o *Outbound, pkt []byte, next uint8) []byte {
	t.Helper()
	buf := make([]byte, o.Headroom()+len(pkt)+o.Tailroom())
	copy(buf[o.Headroom():], pkt)
	start, end, err := o.Seal(buf, o.Headroom(), len(pkt), next)
	if err != nil {
		t.Fatalf("seal %d octets: %v", len(pkt), err)
	}
	if got, want := end-start, o.SealedLen(len(pkt)); start != 0 || got != want {
		t.Fatalf("sealed [%d:%d], want [0:%d]", start, end, want)
	}
	return buf[start:end]
}

func open(in *Inbound, pkt []byte) ([]byte, uint8, error) {
	buf := append([]byte("..."), pkt...)
	start, end, next, err := in.Open(buf, 3, len(pkt))
	return buf[start:end], next, err
}

func TestSealOpenAllSuites(t *testing.T) {
	for i, s := range suites {
		for _, esn := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/esn=%t", s.name, esn), func(t *testing.T) {
				o, in := pair(t, params(i, esn))
				for n := 20; n < 120; n++ {
					got, next, err := open(in, seal(t, o, ipv4(n), NextIPv4))
					if err != nil || next != NextIPv4 || !bytes.Equal(got, ipv4(n)) {
						t.Fatalf("IPv4 of %d octets: %v, next %d", n, err, next)
					}
					if n < 40 {
						continue
					}
					got, next, err = open(in, seal(t, o, ipv6(n), NextIPv6))
					if err != nil || next != NextIPv6 || !bytes.Equal(got, ipv6(n)) {
						t.Fatalf("IPv6 of %d octets: %v, next %d", n, err, next)
					}
				}
				if c := in.Counters(); c.Packets != 180 || c.LastSeq != 180 || c.Drops() != 0 || c.Bytes != o.Counters().Bytes {
					t.Fatalf("counters %+v, outbound %+v", c, o.Counters())
				}
			})
		}
	}
}

func TestLengths(t *testing.T) {
	for i, s := range suites {
		o, _ := pair(t, params(i, false))
		for n := range 300 {
			m := o.MaxInner(n)
			if m > 0 && (o.SealedLen(m) > n || o.SealedLen(m+1) <= n) {
				t.Fatalf("%s: MaxInner(%d) = %d, sealed %d, one more %d", s.name, n, m, o.SealedLen(m), o.SealedLen(m+1))
			}
			if m == 0 && o.SealedLen(1) <= n {
				t.Fatalf("%s: MaxInner(%d) = 0 but one octet seals to %d", s.name, n, o.SealedLen(1))
			}
			if room := o.SealedLen(n) - n - o.Headroom(); room > o.Tailroom() {
				t.Fatalf("%s: %d octets need %d behind, Tailroom says %d", s.name, n, room, o.Tailroom())
			}
		}
	}
}

func TestWireFormat(t *testing.T) {
	o, _ := pair(t, params(0, false))
	for want := uint32(1); want < 4; want++ {
		p := seal(t, o, ipv4(20), NextIPv4)
		if spi, ok := SPIOf(p); !ok || spi != testSPI {
			t.Fatalf("SPI %#x, %t", spi, ok)
		}
		if seq := binary.BigEndian.Uint32(p[4:]); seq != want {
			t.Fatalf("sequence number %d, want %d", seq, want)
		}
		if iv := binary.BigEndian.Uint64(p[8:]); iv != uint64(want) {
			t.Fatalf("IV %d, want %d", iv, want)
		}
	}
}

// RFC 3602 section 3: CBC IVs are unpredictable; here: differ in about half their bits.
func TestCBCIVs(t *testing.T) {
	o, _ := pair(t, params(4, true))
	seen := map[string]bool{}
	for range 1000 {
		iv := string(seal(t, o, ipv4(20), NextIPv4)[8:24])
		if seen[iv] {
			t.Fatal("IV came twice")
		}
		seen[iv] = true
		if strings.HasPrefix(iv, "\x00\x00\x00\x00") {
			t.Fatalf("IV %x looks like a counter", iv)
		}
	}
}

func TestNoRoom(t *testing.T) {
	o, _ := pair(t, params(0, false))
	h, tail := o.Headroom(), o.Tailroom()
	for _, c := range []struct {
		name        string
		buf, off, n int
		want        error
	}{
		{"headroom", 200, h - 1, 20, ErrNoRoom},
		{"negative offset", 200, -1, 20, ErrNoRoom},
		{"negative length", 200, h, -1, ErrNoRoom},
		{"offset behind", 200, 201, 20, ErrNoRoom},
		{"tailroom", h + 23 + tail - 4, h, 23, ErrNoRoom},
		{"length behind", 100, h, 1000, ErrNoRoom},
		{"too long", 70000, h, 65536, ErrTooLong},
		{"fits", h + 23 + tail, h, 23, nil},
	} {
		if _, _, err := o.Seal(make([]byte, c.buf), c.off, c.n, NextIPv4); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if c := o.Counters(); c.NoRoom != 7 || c.Packets != 1 {
		t.Errorf("counters %+v, want 7 without room and 1 packet", c)
	}
}

func TestBadParams(t *testing.T) {
	for name, change := range map[string]func(*Params){
		"reserved SPI":         func(p *Params) { p.SPI = 255 },
		"unknown cipher":       func(p *Params) { p.Encr = 3 },
		"key too short":        func(p *Params) { p.Key = p.Key[:19] },
		"no key":               func(p *Params) { p.Key = nil },
		"salt only":            func(p *Params) { p.Key = p.Key[:4] },
		"KeyBits differ":       func(p *Params) { p.KeyBits = 256 },
		"MAC beside AEAD":      func(p *Params) { p.Integ = IntegSHA256_128 },
		"MAC key beside AEAD":  func(p *Params) { p.IntegKey = make([]byte, 32) },
		"CBC without MAC":      func(p *Params) { *p = params(4, false); p.Integ, p.IntegKey = 0, nil },
		"CBC with SHA-1":       func(p *Params) { *p = params(4, false); p.Integ = 2 },
		"CBC short MAC key":    func(p *Params) { *p = params(4, false); p.IntegKey = p.IntegKey[1:] },
		"chacha, 16 octets":    func(p *Params) { p.Encr = EncrChaCha20Poly1305 },
		"window too small":     func(p *Params) { p.Replay = 1023 },
		"window too large":     func(p *Params) { p.Replay = MaxReplayWindow + 1 },
		"negative window":      func(p *Params) { p.Replay = -1 },
		"byte limit too large": func(p *Params) { p.Limits.HardBytes = 1 << 63 },
	} {
		p := params(0, false)
		change(&p)
		if _, err := NewOutbound(p); !errors.Is(err, ErrParams) {
			t.Errorf("%s: NewOutbound: %v, want ErrParams", name, err)
		}
		if _, err := NewInbound(p); !errors.Is(err, ErrParams) {
			t.Errorf("%s: NewInbound: %v, want ErrParams", name, err)
		}
	}
}

func TestKeysAreNotPrinted(t *testing.T) {
	p := params(4, false)
	p.Key = bytes.Repeat([]byte{0xAB}, 16)
	p.IntegKey = bytes.Repeat([]byte{0xCD}, 32)
	o, in := pair(t, p)
	for _, v := range []any{p, &p, o, in} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			s := strings.ToLower(fmt.Sprintf(verb, v))
			for _, leak := range []string{"abab", "cdcd", "171 171", "205 205", "0xab, 0xab"} {
				if strings.Contains(s, leak) {
					t.Errorf("%s of %T shows a key: %s", verb, v, s)
				}
			}
		}
	}
}

func TestLimits(t *testing.T) {
	t.Run("packets", func(t *testing.T) {
		p := params(0, false)
		p.Limits = Limits{SoftPackets: 3, HardPackets: 5}
		o, in := pair(t, p)
		for i := range 5 {
			if got, want := o.SoftLimitReached(), i >= 3; got != want {
				t.Fatalf("after %d packets soft limit reached: %t", i, got)
			}
			if _, _, err := open(in, seal(t, o, ipv4(40), NextIPv4)); err != nil {
				t.Fatal(err)
			}
			if got, want := in.SoftLimitReached(), i+1 >= 3; got != want {
				t.Fatalf("inbound after %d packets soft limit reached: %t", i+1, got)
			}
		}
		if _, _, err := o.Seal(make([]byte, 200), 50, 40, NextIPv4); !errors.Is(err, ErrHardLimit) {
			t.Fatalf("sixth packet: %v", err)
		}
		p.Limits = Limits{}
		o2, _ := pair(t, p)
		o2.seq.Store(5)
		if _, _, err := open(in, seal(t, o2, ipv4(40), NextIPv4)); !errors.Is(err, ErrHardLimit) {
			t.Fatalf("inbound sixth packet: %v", err)
		}
		if c := in.Counters(); c.HardLimit != 1 || c.Packets != 5 {
			t.Fatalf("inbound counters %+v", c)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		p := params(0, false)
		p.Limits = Limits{HardBytes: 100}
		o, _ := pair(t, p)
		seal(t, o, ipv4(60), NextIPv4)
		if o.SoftLimitReached() {
			t.Fatal("soft limit at 60 of 100")
		}
		if _, _, err := o.Seal(make([]byte, 200), 50, 41, NextIPv4); !errors.Is(err, ErrHardLimit) {
			t.Fatalf("101st octet: %v", err)
		}
		seal(t, o, ipv4(40), NextIPv4)
		if !o.SoftLimitReached() {
			t.Fatal("no soft limit at 100 of 100")
		}
		if c := o.Counters(); c.Packets != 2 || c.Bytes != 100 || c.HardLimit != 1 {
			t.Fatalf("counters %+v", c)
		}
	})
	// RFC 4303 section 3.3.3: the counter must not cycle.
	t.Run("sequence numbers", func(t *testing.T) {
		for _, esn := range []bool{false, true} {
			p := params(0, esn)
			o, _ := pair(t, p)
			o.seq.Store(p.seqLimit() - 1)
			if !o.SoftLimitReached() {
				t.Fatal("no soft limit before the last sequence number")
			}
			seal(t, o, ipv4(40), NextIPv4)
			for range 3 {
				if _, _, err := o.Seal(make([]byte, 200), 50, 40, NextIPv4); !errors.Is(err, ErrHardLimit) {
					t.Fatalf("esn=%t: beyond the last sequence number: %v", esn, err)
				}
			}
			if o.seq.Load() != p.seqLimit() {
				t.Fatalf("counter moved to %d", o.seq.Load())
			}
		}
	})
	t.Run("batch ends at the limit", func(t *testing.T) {
		p := params(0, false)
		p.Limits = Limits{HardPackets: 5}
		o, _ := pair(t, p)
		var pkts []Packet
		for range 8 {
			buf := make([]byte, 200)
			copy(buf[50:], ipv4(40))
			pkts = append(pkts, Packet{Buf: buf, Off: 50, Len: 40, Next: NextIPv4})
		}
		pkts[1].Off = 0
		if n := o.SealBatch(pkts); n != 5 {
			t.Fatalf("%d sealed, want 5", n)
		}
		var errs []error
		for _, p := range pkts {
			errs = append(errs, p.Err)
		}
		want := []error{nil, ErrNoRoom, nil, nil, nil, nil, ErrHardLimit, ErrHardLimit}
		if fmt.Sprint(errs) != fmt.Sprint(want) {
			t.Fatalf("%v, want %v", errs, want)
		}
	})
}

// sealRaw seals a payload with a trailer of the test's choosing.
func sealRaw(t *testing.T, o *Outbound, body []byte) []byte {
	t.Helper()
	w, err := o.t.get()
	if err != nil {
		t.Fatal(err)
	}
	defer o.t.put(w)
	seq, _ := o.reserve(1, uint64(len(body)))
	pkt := make([]byte, o.Headroom()+len(body)+o.t.icv)
	copy(pkt[o.Headroom():], body)
	binary.BigEndian.PutUint32(pkt, o.t.spi)
	binary.BigEndian.PutUint32(pkt[4:], uint32(seq))
	if w.cbc != nil {
		w.cbc.makeIV(pkt[8:24], seq)
		w.cbc.seal(pkt, 24, o.t.icv, seq, o.t.esn)
		return pkt
	}
	at := o.Headroom()
	if o.t.ivLen > 0 {
		binary.BigEndian.PutUint64(pkt[8:], seq)
	}
	binary.BigEndian.PutUint64(w.nonce[4:], seq)
	w.aead.Seal(pkt[at:at], w.nonce[:], pkt[at:at+len(body)], pkt[:8])
	return pkt
}

func TestTrailerAndInner(t *testing.T) {
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	v4 := ipv4(24)
	change := func(b []byte, at int, to byte) []byte {
		b = append([]byte(nil), b...)
		b[at] = to
		return b
	}
	tail := func(next byte) []byte { return []byte{1, 2, 3, 4, 5, 6, 6, next} } // 24+8 = 32: also two AES blocks
	for _, c := range []struct {
		name string
		body []byte
		want error
		n    int
	}{
		{"IPv4", cat(v4, tail(4)), nil, 24},
		{"TFC padding", cat(ipv4(20), make([]byte, 4), tail(4)), nil, 20},
		{"TFC padding, long", cat(v4, make([]byte, 1000), tail(4)), nil, 24},
		{"255 octets of padding", cat(ipv4(31), pad(255), []byte{255, 4}), nil, 31},
		{"padding not counted up", cat(v4, []byte{1, 2, 3, 5, 5, 6, 6, 4}), ErrMalformed, 0},
		{"padding of zeroes", cat(v4, []byte{0, 0, 0, 0, 0, 0, 6, 4}), ErrMalformed, 0},
		{"pad length longer than the packet", cat(v4, []byte{1, 2, 3, 4, 5, 6, 31, 4}), ErrMalformed, 0},
		{"dummy", cat(v4, tail(59)), ErrDummy, 0},
		{"dummy with random payload", cat(bytes.Repeat([]byte{0xee}, 24), tail(59)), ErrDummy, 0},
		{"dummy with bad padding", cat(v4, []byte{9, 9, 9, 9, 9, 9, 6, 59}), ErrMalformed, 0},
		{"transport mode TCP", cat(v4, tail(6)), ErrMalformed, 0},
		{"ESP in ESP", cat(v4, tail(50)), ErrMalformed, 0},
		{"IPv4 said to be IPv6", cat(v4, tail(41)), ErrMalformed, 0},
		{"IPv6 said to be IPv4", cat(ipv6(40), tail(4)), ErrMalformed, 0},
		{"version 5", cat(change(v4, 0, 0x55), tail(4)), ErrMalformed, 0},
		{"IHL 4", cat(change(v4, 0, 0x44), tail(4)), ErrMalformed, 0},
		{"IHL longer than packet", cat(change(v4, 0, 0x47), tail(4)), ErrMalformed, 0},
		{"IPv4 total length 0", cat(change(v4, 3, 0), tail(4)), ErrMalformed, 0},
		{"IPv4 total length 19", cat(change(v4, 3, 19), tail(4)), ErrMalformed, 0},
		{"IPv4 total length too long", cat(change(v4, 3, 25), tail(4)), ErrMalformed, 0},
		{"IPv4 of 16 octets", cat(v4[:16], make([]byte, 8), []byte{1, 2, 3, 4, 5, 6, 6, 4})[:16], ErrMalformed, 0},
		{"only a trailer", cat(pad(14), []byte{14, 4}), ErrMalformed, 0},
		{"IPv6", cat(ipv6(40), tail(41)), nil, 40},
		{"IPv6, TFC padding", cat(ipv6(48), make([]byte, 56), tail(41)), nil, 48},
		{"IPv6 payload length too long", cat(change(ipv6(40), 5, 1), tail(41)), ErrMalformed, 0},
		{"IPv6 of 39 octets", cat(ipv6(40)[:39], []byte{1, 2, 3, 4, 5, 6, 7, 7, 41}), ErrMalformed, 0},
	} {
		for i, s := range suites {
			o, in := pair(t, params(i, false))
			body := c.body
			if len(body)%o.t.align != 0 { // make up for it in front of the trailer, as TFC padding
				if o.t.align == 16 && !errors.Is(c.want, ErrMalformed) {
					k := -len(body) & 15
					cut := len(body) - 8
					if c.name == "255 octets of padding" {
						continue
					}
					body = cat(body[:cut], make([]byte, k), body[cut:])
				} else {
					continue
				}
			}
			got, _, err := open(in, sealRaw(t, o, body))
			if !errors.Is(err, c.want) || len(got) != c.n {
				t.Errorf("%s, %s: %v, %d octets; want %v, %d", c.name, s.name, err, len(got), c.want, c.n)
			}
			cnt := in.Counters()
			if cnt.Packets != 1 || (cnt.Dummy == 1) != errors.Is(c.want, ErrDummy) || (cnt.Malformed == 1) != errors.Is(c.want, ErrMalformed) {
				t.Errorf("%s, %s: counters %+v", c.name, s.name, cnt)
			}
		}
	}
}

func pad(n int) (b []byte) {
	for i := range n {
		b = append(b, byte(i+1))
	}
	return b
}

func TestAllTruncationsFail(t *testing.T) {
	for i, s := range suites {
		for _, esn := range []bool{false, true} {
			o, in := pair(t, params(i, esn))
			p := seal(t, o, ipv4(70), NextIPv4)
			for n := range p {
				if _, _, err := open(in, p[:n]); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrAuth) {
					t.Fatalf("%s: first %d of %d octets: %v", s.name, n, len(p), err)
				}
			}
			for _, c := range []struct{ off, n int }{{-1, 80}, {0, len(p) + 1}, {len(p), 10}, {1 << 40, 80}, {3, -1}} {
				if _, _, _, err := in.Open(p, c.off, c.n); !errors.Is(err, ErrMalformed) {
					t.Fatalf("%s: range %d, %d: %v", s.name, c.off, c.n, err)
				}
			}
			if _, _, err := open(in, p); err != nil {
				t.Fatalf("%s: whole packet after its truncations: %v", s.name, err)
			}
		}
	}
}

func TestBitFlipsAnywhereFail(t *testing.T) {
	for i, s := range suites {
		for _, esn := range []bool{false, true} {
			o, in := pair(t, params(i, esn))
			p := seal(t, o, ipv4(50), NextIPv4)
			for bit := range len(p) * 8 {
				q := append([]byte(nil), p...)
				q[bit/8] ^= 1 << (bit % 8)
				if _, _, err := open(in, q); err == nil || errors.Is(err, ErrDummy) {
					t.Fatalf("%s esn=%t: bit %d flipped and the packet opened", s.name, esn, bit)
				}
			}
			if c := in.Counters(); c.LastSeq != 0 || c.Packets != 0 {
				t.Fatalf("%s: forged packets moved the window: %+v", s.name, c)
			}
			if _, _, err := open(in, p); err != nil {
				t.Fatalf("%s: true packet after the forged ones: %v", s.name, err)
			}
		}
	}
}

func TestReplayedPacket(t *testing.T) {
	for i, s := range suites {
		o, in := pair(t, params(i, true))
		p := seal(t, o, ipv4(50), NextIPv4)
		if _, _, err := open(in, p); err != nil {
			t.Fatal(err)
		}
		if _, _, err := open(in, p); !errors.Is(err, ErrReplay) {
			t.Fatalf("%s: second time: %v", s.name, err)
		}
		// Twice in one batch: both pass the first look, one passes the second.
		p = seal(t, o, ipv4(50), NextIPv4)
		batch := []Packet{
			{Buf: append([]byte(nil), p...), Len: len(p)},
			{Buf: append([]byte(nil), p...), Len: len(p)},
			{Buf: []byte("short"), Len: 5},
		}
		if n := in.OpenBatch(batch); n != 1 || batch[0].Err != nil || !errors.Is(batch[1].Err, ErrReplay) || !errors.Is(batch[2].Err, ErrMalformed) {
			t.Fatalf("%s: %d opened, %v, %v, %v", s.name, n, batch[0].Err, batch[1].Err, batch[2].Err)
		}
		if c := in.Counters(); c.Replay != 2 || c.Malformed != 1 || c.Packets != 2 {
			t.Fatalf("%s: counters %+v", s.name, c)
		}
	}
}

func TestBatchIsSealInTurn(t *testing.T) {
	for i, s := range suites {
		one, in := pair(t, params(i, true))
		many, _ := pair(t, params(i, true))
		var pkts []Packet
		var want [][]byte
		for n := 20; n < 90; n++ {
			want = append(want, seal(t, one, ipv4(n), NextIPv4))
			buf := make([]byte, 300)
			copy(buf[40:], ipv4(n))
			pkts = append(pkts, Packet{Buf: buf, Off: 40, Len: n, Next: NextIPv4})
		}
		if n := many.SealBatch(pkts); n != len(pkts) {
			t.Fatalf("%s: %d sealed", s.name, n)
		}
		for k, p := range pkts {
			if !bytes.Equal(p.Buf[p.Off:p.Off+p.Len], want[k]) {
				t.Fatalf("%s: packet %d differs", s.name, k)
			}
		}
		if n := in.OpenBatch(pkts); n != len(pkts) {
			t.Fatalf("%s: %d opened", s.name, n)
		}
		for k, p := range pkts {
			if !bytes.Equal(p.Buf[p.Off:p.Off+p.Len], ipv4(20+k)) || p.Next != NextIPv4 {
				t.Fatalf("%s: opened packet %d differs", s.name, k)
			}
		}
	}
}

func TestClose(t *testing.T) {
	for i, s := range suites {
		o, in := pair(t, params(i, false))
		p := seal(t, o, ipv4(50), NextIPv4)
		aead, ow := o.t.aead, o.t.idle[0].Load()
		keys := o.t.keys.encr
		cbc := ow.cbc
		var inner []byte
		if cbc != nil {
			inner = cbc.mac.inner
		}
		o.Close()
		in.Close()
		o.Close()
		if _, _, err := o.Seal(make([]byte, 200), 50, 40, NextIPv4); !errors.Is(err, ErrClosed) {
			t.Fatalf("%s: seal: %v", s.name, err)
		}
		if _, _, err := open(in, p); !errors.Is(err, ErrClosed) {
			t.Fatalf("%s: open: %v", s.name, err)
		}
		batch := []Packet{{Buf: make([]byte, 200), Off: 50, Len: 40}, {}}
		if n := o.SealBatch(batch); n != 0 || !errors.Is(batch[0].Err, ErrClosed) || !errors.Is(batch[1].Err, ErrNoRoom) {
			t.Fatalf("%s: batch: %d, %v, %v", s.name, n, batch[0].Err, batch[1].Err)
		}
		if n := in.OpenBatch(batch); n != 0 || !errors.Is(batch[0].Err, ErrClosed) {
			t.Fatalf("%s: batch: %d, %v", s.name, n, batch[0].Err)
		}
		if o.Counters().Packets != 1 {
			t.Fatalf("%s: counters gone", s.name)
		}
		if !bytes.Equal(keys, make([]byte, len(keys))) || !bytes.Equal(inner, make([]byte, len(inner))) {
			t.Fatalf("%s: keys not wiped", s.name)
		}
		if *ow != (worker{}) || o.t.live != 0 || o.t.aead != nil {
			t.Fatalf("%s: worker not wiped: %d live", s.name, o.t.live)
		}
		if aead != nil {
			// The expanded key inside the library's cipher is gone too: nothing but zeroes.
			if got := fmt.Sprintf("%+v", aead); strings.ContainsAny(got, "123456789") {
				t.Fatalf("%s: cipher not wiped: %s", s.name, got)
			}
		}
	}
}

// Close while a worker is out: the key is wiped when it comes back.
func TestCloseWaitsForUser(t *testing.T) {
	o, _ := pair(t, params(0, false))
	w, err := o.t.get()
	if err != nil {
		t.Fatal(err)
	}
	o.Close()
	if w.aead == nil || o.t.aead == nil || w.nonce == [12]byte{} {
		t.Fatal("key wiped under its user")
	}
	o.t.put(w)
	if w.aead != nil || o.t.aead != nil || w.nonce != [12]byte{} {
		t.Fatal("key not wiped after its last user")
	}
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		pkt  string
		want Kind
	}{
		{"", KindInvalid},
		{"\xff", KindKeepalive},
		{"\xfe", KindInvalid},
		{"\xff\xff", KindInvalid},
		{"\x00\x00\x00\x00", KindInvalid},
		{"\x00\x00\x00\x00abcd", KindIKE},
		{"\x00\x00\x00\x01abcd", KindInvalid},
		{"\x00\x00\x00\xffabcd", KindInvalid},
		{"\x00\x00\x01\x00abcd", KindESP},
		{"\xff\xff\xff\xffabcd", KindESP},
		{"\xff\xff\xff\xffabc", KindInvalid},
	} {
		if got := Classify([]byte(c.pkt)); got != c.want {
			t.Errorf("Classify(%q) = %d, want %d", c.pkt, got, c.want)
		}
		if _, ok := SPIOf([]byte(c.pkt)); ok != (c.want == KindESP) {
			t.Errorf("SPIOf(%q) ok = %t", c.pkt, ok)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	for i, s := range suites {
		for _, esn := range []bool{false, true} {
			o, in := pair(t, params(i, esn))
			buf := make([]byte, 1600)
			inner := ipv4(1000)
			batch := make([]Packet, 4)
			for k := range batch {
				batch[k].Buf = make([]byte, 1600)
			}
			if n := testing.AllocsPerRun(100, func() {
				copy(buf[64:], inner)
				start, end, err := o.Seal(buf, 64, len(inner), NextIPv4)
				if err != nil {
					t.Fatal(err)
				}
				if _, _, _, err := in.Open(buf, start, end-start); err != nil {
					t.Fatal(err)
				}
				for k := range batch {
					p := &batch[k]
					copy(p.Buf[64:], inner)
					p.Off, p.Len, p.Next = 64, len(inner), NextIPv4
				}
				if o.SealBatch(batch) != 4 {
					t.Fatal("not all sealed")
				}
				batch[1].Buf[500] ^= 1 // a drop allocates nothing either
				if in.OpenBatch(batch) != 3 {
					t.Fatal("not three opened")
				}
			}); n != 0 {
				t.Errorf("%s esn=%t: %v allocations", s.name, esn, n)
			}
		}
	}
}
