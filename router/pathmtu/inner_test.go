package pathmtu

import (
	"slices"
	"strings"
	"testing"

	"wardgate/esp"
)

func TestInnerMTU(t *testing.T) {
	gcm := func() *esp.Outbound {
		o, err := esp.NewOutbound(esp.Params{SPI: 256, Encr: esp.EncrAESGCM16, Key: make([]byte, 20)})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}()
	for _, c := range []struct {
		outer     int
		v6, encap bool
		want      int
	}{
		{1500, false, true, 1438},
		{1500, false, false, 1446},
		{1500, true, true, 1418},
		{1500, true, false, 1426},
		{1492, false, true, 1430},
		{1280, true, true, 1198},
		{1280, true, false, 1206},
		{576, false, true, 514},
		{1342, false, true, 1278},
		{1343, false, true, 1278},
		{1344, false, true, 1282},
		{1364, true, true, 1282},
		{68, false, true, 6},
		{20, false, false, 0},
		{0, true, true, 0},
		{-5, false, false, 0},
	} {
		got := InnerMTU(c.outer, c.v6, c.encap, gcm.MaxInner)
		if got != c.want {
			t.Errorf("outer %d, IPv6 %v, UDP %v: %d, want %d", c.outer, c.v6, c.encap, got, c.want)
		}
		head := 20
		if c.v6 {
			head = 40
		}
		if c.encap {
			head += 8
		}
		if got > 0 && (head+gcm.SealedLen(got) > c.outer || head+gcm.SealedLen(got+1) <= c.outer) {
			t.Errorf("outer %d: inner %d makes %d, one more %d", c.outer, got, head+gcm.SealedLen(got), head+gcm.SealedLen(got+1))
		}
	}
	if got := InnerMTU(1500, false, false, func(int) int { return -3 }); got != 0 {
		t.Errorf("%d", got)
	}
	if got := InnerMTU(1<<20, false, false, func(n int) int { return n }); got != 65535 {
		t.Errorf("%d", got)
	}
}

func TestJudge(t *testing.T) {
	free4, free6 := udp4(t, 1480), udp6(t, 1460)
	df := setFrag(udp4(t, 1480), flagDF)
	for _, c := range []struct {
		why    string
		pkt    []byte
		n, mtu int
		want   Fit
	}{
		{"fits", df, 1400, 1400, Fits},
		{"segments of a super-packet fit", df, 1400, 1438, Fits},
		{"case 1: IPv4 with DF", df, 1401, 1400, TellSender},
		{"case 2: IPv4 without DF", free4, 1401, 1400, FragmentInner},
		{"case 3: IPv6", free6, 1401, 1400, TellSender},
		{"IPv6 longer than the least, MTU less than the least", free6, 1281, 1198, TellSender},
		{"IPv6 of the least MTU fits", free6, 1280, 1280, Fits},
		{"IPv6 of the least MTU does not fit", free6, 1280, 1279, FragmentOuter},
		{"IPv4 of the least MTU", df, 68, 67, FragmentOuter},
		{"IPv4 of one more", df, 69, 67, TellSender},
		{"nonsense", []byte{1, 2, 3}, 1500, 1400, TellSender},
		{"neither version", slices.Concat([]byte{0x55}, free4[1:]), 1500, 1400, TellSender},
	} {
		if got := Judge(c.pkt, c.n, c.mtu); got != c.want {
			t.Errorf("%s: %v, want %v", c.why, got, c.want)
		}
	}
}

func TestRules(t *testing.T) {
	for _, c := range []struct {
		v6         bool
		typ, code  uint8
		want       Action
		in4, inner TypeCode
	}{
		{false, 3, 4, LowerMTU, TypeCode{3, 4}, TypeCode{2, 0}},
		{true, 2, 0, LowerMTU, TypeCode{3, 4}, TypeCode{2, 0}},
		{true, 2, 9, LowerMTU, TypeCode{3, 4}, TypeCode{2, 0}},
		{false, 3, 0, CheckPeer, TypeCode{3, 1}, TypeCode{1, 3}},
		{false, 3, 1, CheckPeer, TypeCode{3, 1}, TypeCode{1, 3}},
		{false, 3, 2, CheckEncap, TypeCode{3, 1}, TypeCode{1, 3}},
		{false, 3, 3, CheckPeer, TypeCode{3, 1}, TypeCode{1, 3}},
		{false, 3, 13, CheckEncap, TypeCode{3, 1}, TypeCode{1, 3}},
		{false, 3, 200, CheckPeer, TypeCode{3, 1}, TypeCode{1, 3}},
		{false, 4, 0, Ignore, TypeCode{}, TypeCode{}},
		{false, 5, 1, Ignore, TypeCode{}, TypeCode{}},
		{false, 11, 0, CheckPeer, TypeCode{3, 1}, TypeCode{1, 3}},
		{false, 11, 1, Ignore, TypeCode{}, TypeCode{}},
		{false, 0, 0, Ignore, TypeCode{}, TypeCode{}},
		{false, 2, 0, Ignore, TypeCode{}, TypeCode{}},
		{true, 1, 1, CheckEncap, TypeCode{3, 1}, TypeCode{1, 3}},
		{true, 1, 0, CheckPeer, TypeCode{3, 1}, TypeCode{1, 3}},
		{true, 1, 6, CheckPeer, TypeCode{3, 1}, TypeCode{1, 3}},
		{true, 4, 1, CheckEncap, TypeCode{3, 1}, TypeCode{1, 3}},
		{true, 4, 2, CheckPeer, TypeCode{3, 1}, TypeCode{1, 3}},
		{true, 137, 0, Ignore, TypeCode{}, TypeCode{}},
		{true, 99, 0, Ignore, TypeCode{}, TypeCode{}},
	} {
		r := RuleFor(c.v6, c.typ, c.code)
		if r.Action != c.want || r.Inner4 != c.in4 || r.Inner6 != c.inner {
			t.Errorf("IPv6 %v, type %d code %d: %v, %v, %v", c.v6, c.typ, c.code, r.Action, r.Inner4, r.Inner6)
		}
	}
	type key struct {
		v6        bool
		typ, code uint8
		any       bool
	}
	seen := map[key]bool{}
	for _, r := range Rules {
		k := key{r.V6, r.Type, r.Code, r.AnyCode}
		if seen[k] || r.AnyCode && r.Code != 0 {
			t.Errorf("%+v: twice, or a code beside \"any code\"", k)
		}
		seen[k] = true
		if !strings.Contains(r.Sections, "RFC ") || r.Why == "" {
			t.Errorf("%+v: says not why", k)
		}
		if (r.Action == Ignore) != (r.Inner4 == none && r.Inner6 == none) {
			t.Errorf("%+v: %v tells %v, %v", k, r.Action, r.Inner4, r.Inner6)
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	pkt := udp4(b, 1380)
	b.ReportAllocs()
	for b.Loop() {
		if Judge(pkt, len(pkt), 1438) != Fits {
			b.Fatal("does not fit")
		}
	}
}
