package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// drawDesc draws a packet with data of 1 … max octets.
func drawDesc(t *rapid.T, maxData int) desc {
	d := desc{
		v6: rapid.Bool().Draw(t, "v6"), proto: rapid.SampledFrom([]uint8{protoTCP, protoUDP}).Draw(t, "proto"),
		tos: rapid.Uint8().Draw(t, "tos"), ttl: rapid.Uint8().Draw(t, "ttl"), id: rapid.Uint16().Draw(t, "id"), df: rapid.Bool().Draw(t, "df"),
		src: rapid.Uint8().Draw(t, "src"), dst: rapid.Uint8().Draw(t, "dst"), sp: rapid.Uint16().Draw(t, "sp"), dp: rapid.Uint16().Draw(t, "dp"),
		seq: rapid.OneOf(rapid.Uint32(), rapid.Uint32Range(1<<32-3000, 1<<32-1)).Draw(t, "seq"), ack: rapid.Uint32().Draw(t, "ack"),
		flags: rapid.Uint8().Draw(t, "flags"), window: rapid.Uint16().Draw(t, "window"),
		data: make([]byte, rapid.IntRange(1, maxData).Draw(t, "data")),
	}
	if d.v6 {
		d.flow = rapid.Uint32Range(0, 1<<20-1).Draw(t, "flow")
		if rapid.Bool().Draw(t, "destination options") {
			d.ipOpt = []byte{d.proto, 0, 1, 4, 0, 0, 0, 0}
		}
	} else {
		d.ipOpt = rapid.SliceOfN(rapid.Byte(), 0, 10).Draw(t, "ip options")
		d.ipOpt = append(d.ipOpt, make([]byte, -len(d.ipOpt)&3)...)
	}
	if d.proto == protoTCP {
		d.opt = rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "options")
		d.opt = d.opt[:len(d.opt)&^3]
	}
	seed := rapid.Uint64().Draw(t, "content")
	for i := range d.data {
		seed = seed*6364136223846793005 + 1442695040888963407
		d.data[i] = byte(seed >> 56)
	}
	return d
}

func TestSegmentModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDesc(t, 65000)
		gso := rapid.OneOf(rapid.IntRange(1, 65000), rapid.IntRange(500, 1500), rapid.Just(len(d.data))).Draw(t, "gso")
		gso = max(gso, len(d.data)/300+1)
		h, pkt := d.super(gso)
		want := d.segments(gso)
		got, err := cut(&h, pkt)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, got, want)
	})
}

// Packets of ordinary size whose checksum is still to be made.
func TestCompleteChecksum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDesc(t, 3000)
		h, pkt := d.super(0)
		h.gsoType, h.gsoSize = gsoNone, 0
		got, err := cut(&h, pkt)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, got, [][]byte{d.build(false)})

		got, err = cut(&virtioHeader{}, d.build(false))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, got, [][]byte{d.build(false)})
	})
}

func cut(h *virtioHeader, pkt []byte) (pkts [][]byte, err error) {
	var s segmenter
	if err := s.begin(h, pkt); err != nil {
		return nil, err
	}
	for !s.done() {
		dst := bytes.Repeat([]byte{0xa5}, 66000)
		n, err := s.next(dst)
		if err != nil {
			return pkts, err
		}
		if bytes.Count(dst[n:], []byte{0xa5}) != len(dst)-n {
			return pkts, errors.New("written beyond the packet")
		}
		pkts = append(pkts, dst[:n])
	}
	return pkts, nil
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

func compare(t fataler, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d of %d:\n% x, want\n% x", i, len(got), got[i][:min(len(got[i]), 100)], want[i][:min(len(want[i]), 100)])
		}
	}
}

// UDP over IPv4 whose checksum comes out as zero is sent as all ones (RFC 768).
func TestZeroUDPChecksum(t *testing.T) {
	d := desc{proto: protoUDP, sp: 1, dp: 2, data: make([]byte, 4)}
	binary.BigEndian.PutUint16(d.data, ^slowSum(d.pseudo(12), d.l4(0)))
	h, pkt := d.super(0)
	h.gsoType = gsoNone
	got, err := cut(&h, pkt)
	if err != nil || !bytes.Equal(got[0][26:28], []byte{0xff, 0xff}) {
		t.Fatalf("%v, checksum % x", err, got[0][26:28])
	}
}

func TestSegmentRefuses(t *testing.T) {
	tcp := desc{proto: protoTCP, data: make([]byte, 3000), flags: tcpACK}
	tcp6 := tcp
	tcp6.v6 = true
	udp := desc{proto: protoUDP, data: make([]byte, 3000)}
	for name, c := range map[string]struct {
		d      desc
		change func(h *virtioHeader, p []byte) []byte
		want   error
	}{
		"empty":                        {tcp, func(_ *virtioHeader, _ []byte) []byte { return nil }, errHeader},
		"19 octets":                    {tcp, func(_ *virtioHeader, p []byte) []byte { return p[:19] }, errHeader},
		"IPv6 of 39 octets":            {tcp6, func(_ *virtioHeader, p []byte) []byte { return p[:39] }, errHeader},
		"version 7":                    {tcp, func(_ *virtioHeader, p []byte) []byte { p[0] = 0x75; return p }, errHeader},
		"checksum behind the end":      {tcp, func(h *virtioHeader, p []byte) []byte { h.csumOffset = 5000; return p }, errHeader},
		"checksum in the IP header":    {tcp, func(h *virtioHeader, p []byte) []byte { h.csumStart = 10; return p }, errHeader},
		"no checksum wanted":           {tcp, func(h *virtioHeader, p []byte) []byte { h.flags = 0; return p }, errHeader},
		"size 0":                       {tcp, func(h *virtioHeader, p []byte) []byte { h.gsoSize = 0; return p }, errHeader},
		"start is not IHL":             {tcp, func(h *virtioHeader, p []byte) []byte { h.csumStart = 24; return p }, errHeader},
		"IPv6 start in the header":     {tcp6, func(h *virtioHeader, p []byte) []byte { h.csumStart = 36; return p }, errHeader},
		"TCPv4 is IPv6":                {tcp6, func(h *virtioHeader, p []byte) []byte { h.gsoType = gsoTCPv4; return p }, errHeader},
		"TCPv6 is IPv4":                {tcp, func(h *virtioHeader, p []byte) []byte { h.gsoType = gsoTCPv6; return p }, errHeader},
		"TCP is UDP":                   {udp, func(h *virtioHeader, p []byte) []byte { h.gsoType, h.csumOffset = gsoTCPv4, 16; return p }, errHeader},
		"UDP is TCP":                   {tcp, func(h *virtioHeader, p []byte) []byte { h.gsoType, h.csumOffset = gsoUDPL4, 6; return p }, errHeader},
		"TCP with the offset of UDP":   {tcp, func(h *virtioHeader, p []byte) []byte { h.csumOffset = 6; return p }, errHeader},
		"UDP with the offset of TCP":   {udp, func(h *virtioHeader, p []byte) []byte { h.csumOffset = 16; return p }, errHeader},
		"TCP data offset 4":            {tcp, func(_ *virtioHeader, p []byte) []byte { p[32] = 0x40; return p }, errHeader},
		"TCP header behind the end":    {tcp, func(_ *virtioHeader, p []byte) []byte { return p[:38] }, errHeader},
		"TCP options behind the end":   {tcp, func(_ *virtioHeader, p []byte) []byte { p[32] = 0xf0; return p[:60] }, errHeader},
		"no payload":                   {tcp, func(_ *virtioHeader, p []byte) []byte { return p[:40] }, errHeader},
		"fragmentation offload (UFO)":  {udp, func(h *virtioHeader, p []byte) []byte { h.gsoType = 3; return p }, errGSOType},
		"tunnel offload":               {udp, func(h *virtioHeader, p []byte) []byte { h.gsoType |= 0x20; return p }, errGSOType},
		"longer than IPv4 can be":      {tcp, func(_ *virtioHeader, p []byte) []byte { return append(p, make([]byte, 65000)...) }, errHeader},
		"longer than IPv6 can be":      {tcp6, func(_ *virtioHeader, p []byte) []byte { return append(p, make([]byte, 65000)...) }, errHeader},
		"needs checksum, packet short": {tcp, func(h *virtioHeader, p []byte) []byte { h.gsoType = 0; return p[:30] }, errHeader},
	} {
		h, p := c.d.super(1000)
		p = c.change(&h, p)
		if _, err := cut(&h, p); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestSegmentTooLargeForBuffer(t *testing.T) {
	d := desc{proto: protoTCP, data: make([]byte, 2500), flags: tcpACK}
	h, pkt := d.super(1000)
	var s segmenter
	if err := s.begin(&h, pkt); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		room, n int
		want    error
	}{{1040, 1040, nil}, {1039, 0, errTooSmall}, {1040, 540, nil}} {
		if n, err := s.next(make([]byte, c.room)); n != c.n || !errors.Is(err, c.want) {
			t.Fatalf("segment %d: %d, %v", i, n, err)
		}
	}
	if !s.done() {
		t.Fatal("not done")
	}
}

// FuzzSegment: any header before any packet. Nothing panics or writes where it should not, and what
// comes out adds up: all payload, in order, each packet valid if the super-packet was.
func FuzzSegment(f *testing.F) {
	for _, d := range []desc{
		{proto: protoTCP, data: make([]byte, 300), flags: 0xff, opt: make([]byte, 12)},
		{proto: protoTCP, v6: true, data: make([]byte, 300), flags: 0x18},
		{proto: protoUDP, data: make([]byte, 300), ipOpt: []byte{1, 1, 1, 1}},
		{proto: protoUDP, v6: true, data: make([]byte, 300), ipOpt: []byte{17, 0, 1, 4, 0, 0, 0, 0}},
	} {
		h, p := d.super(100)
		b := make([]byte, virtioHeaderLen)
		h.encode(b)
		f.Add(append(b, p...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < virtioHeaderLen {
			return
		}
		var h virtioHeader
		h.decode(b)
		pkt := b[virtioHeaderLen:]
		orig := bytes.Clone(pkt)
		var s segmenter
		if err := s.begin(&h, pkt); err != nil {
			return
		}
		payload := s.payload
		var all []byte
		n := 0
		for ; !s.done(); n++ {
			dst := make([]byte, len(pkt)+8)
			m, err := s.next(dst)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, dst[payload:m]...)
		}
		if !bytes.Equal(pkt, orig) {
			t.Fatal("super-packet changed")
		}
		if h.gsoType&^gsoECN == gsoNone {
			if n != 1 || len(all) != len(pkt) {
				t.Fatalf("%d packets, %d octets of %d", n, len(all), len(pkt))
			}
			return
		}
		if !bytes.Equal(all, pkt[payload:]) || n != (len(all)+int(h.gsoSize)-1)/int(h.gsoSize) {
			t.Fatalf("%d packets, %d octets of payload of %d", n, len(all), len(pkt)-payload)
		}
		// A super-packet that is right altogether must give the model's packets.
		if d, ok := parse(pkt); ok {
			if wh, wp := d.super(int(h.gsoSize)); wh.gsoType&^gsoECN == h.gsoType&^gsoECN && bytes.Equal(wp, pkt) {
				got, err := cut(&h, pkt)
				if err != nil {
					t.Fatal(err)
				}
				compare(t, got, d.segments(int(h.gsoSize)))
			}
		}
	})
}

func BenchmarkSegment(b *testing.B) {
	for _, c := range []struct {
		name string
		d    desc
		gso  int
	}{
		{"tcp4/1368", desc{proto: protoTCP, data: make([]byte, 64000), flags: tcpACK, opt: make([]byte, 12)}, 1368},
		{"tcp6/1348", desc{v6: true, proto: protoTCP, data: make([]byte, 64000), flags: tcpACK, opt: make([]byte, 12)}, 1348},
		{"udp4/1392", desc{proto: protoUDP, data: make([]byte, 64000)}, 1392},
		{"udp4/200", desc{proto: protoUDP, data: make([]byte, 12800)}, 200},
	} {
		b.Run(c.name, func(b *testing.B) {
			h, pkt := c.d.super(c.gso)
			dst := make([]byte, 2000)
			b.SetBytes(int64(len(pkt)))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				var s segmenter
				if err := s.begin(&h, pkt); err != nil {
					b.Fatal(err)
				}
				for !s.done() {
					if _, err := s.next(dst); err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/packet")
		})
	}
}
