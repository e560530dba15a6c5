package tun

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// fakeKernel is the other side of a queue: it keeps what was written.
type fakeKernel struct {
	written [][]byte
	refuse  func(b []byte) unix.Errno
}

func (k *fakeKernel) sys(_ uintptr, iov []unix.Iovec) unix.Errno {
	var b []byte
	for _, v := range iov {
		b = append(b, unsafe.Slice(v.Base, v.Len)...)
	}
	if k.refuse != nil {
		if e := k.refuse(b); e != 0 {
			return e
		}
	}
	k.written = append(k.written, b)
	return 0
}

func newFakeQueue(off Offloads) (*queue, *fakeKernel) {
	k := &fakeKernel{}
	q := &queue{}
	q.write.sys = k.sys
	q.write.wait.fds[0].Events, q.write.wait.closed = unix.POLLOUT, &q.closed
	q.write.wait.sys = func(fds []unix.PollFd, _ *unix.Timespec) unix.Errno { // there is room at once
		fds[0].Revents = fds[0].Events
		return 0
	}
	q.write.glue.tcp, q.write.glue.udp = off.TCP, off.UDP
	return q, k
}

// batch puts packets into buffers with the room that WriteBatch wants.
func batch(pkts [][]byte) (out []Packet) {
	for _, p := range pkts {
		buf := append(bytes.Repeat([]byte{0xa5}, VirtioHeaderLen), p...)
		out = append(out, Packet{Buf: buf, Off: VirtioHeaderLen, Len: len(p)})
	}
	return out
}

// through writes the batch and returns what comes out of the kernel, and the number of writes.
func through(t fataler, pkts [][]byte, off Offloads) (out [][]byte, writes int) {
	t.Helper()
	q, k := newFakeQueue(off)
	if n, err := q.WriteBatch(batch(pkts)); n != len(pkts) || err != nil {
		t.Fatalf("%d of %d written: %v", n, len(pkts), err)
	}
	for _, b := range k.written {
		cut, err := kernel(b)
		if err != nil {
			t.Fatalf("%v", err)
		}
		out = append(out, cut...)
	}
	return out, len(k.written)
}

// flowOf names the flow of a packet; "" is a packet that must keep its place among all.
func flowOf(b []byte) string {
	var proto uint8
	var addrs, l4 []byte
	switch {
	case b[0] == 0x45 && int(b[2])<<8+int(b[3]) == len(b) && b[6]&0xbf == 0 && b[7] == 0:
		proto, addrs, l4 = b[9], b[12:20], b[20:]
	case b[0]>>4 == 6 && int(b[4])<<8+int(b[5]) == len(b)-40:
		proto, addrs, l4 = b[6], b[8:40], b[40:]
	default:
		return ""
	}
	if proto == protoUDP && len(l4) >= 8 && int(l4[4])<<8+int(l4[5]) == len(l4) ||
		proto == protoTCP && len(l4) >= 20 && l4[12]>>4 >= 5 && int(l4[12]>>4)*4 <= len(l4) {
		return fmt.Sprintf("%d %x %x", proto, addrs, l4[:4])
	}
	return ""
}

// canonical makes packets equal that differ only in the identification of a packet that must not
// be fragmented (RFC 6864 section 4.1: it has no meaning).
func canonical(b []byte) string {
	if b[0] == 0x45 && b[6]&0x40 != 0 && slowSum(b[:20]) == 0xffff {
		b = bytes.Clone(b)
		b[4], b[5], b[10], b[11] = 0, 0, 0, 0
	}
	return string(b)
}

// sameStream checks that out is in, with nothing moved but packets of different flows past each
// other between two packets whose flow cannot be told.
func sameStream(t fataler, in, out [][]byte) {
	t.Helper()
	if len(in) != len(out) {
		t.Fatalf("%d packets out, %d in", len(out), len(in))
	}
	type part map[string][]string
	split := func(pkts [][]byte) (parts []part, barriers []string) {
		parts = []part{{}}
		for _, p := range pkts {
			if f := flowOf(p); f != "" {
				last := parts[len(parts)-1]
				last[f] = append(last[f], canonical(p))
			} else {
				barriers = append(barriers, string(p))
				parts = append(parts, part{})
			}
		}
		return parts, barriers
	}
	pi, bi := split(in)
	po, bo := split(out)
	if fmt.Sprintf("%x", bi) != fmt.Sprintf("%x", bo) {
		t.Fatalf("packets without a flow differ or moved")
	}
	for i := range pi {
		for f, a := range pi[i] {
			b := po[i][f]
			if len(a) != len(b) {
				t.Fatalf("flow %s, part %d: %d packets out, %d in", f, i, len(b), len(a))
			}
			for k := range a {
				if a[k] != b[k] {
					t.Fatalf("flow %s, packet %d:\n% x, want\n% x", f, k, b[k][:min(len(b[k]), 80)], a[k][:min(len(a[k]), 80)])
				}
			}
		}
	}
}

// drawStream draws packets as they come through a tunnel: a few flows, mostly going on where they
// were, now and then with something different.
func drawStream(t *rapid.T) (pkts [][]byte) {
	flows := make([]desc, rapid.IntRange(1, 10).Draw(t, "flows"))
	sizes := make([]int, len(flows))
	idStep := make([]uint16, len(flows))
	for i := range flows {
		f := &flows[i]
		f.v6 = rapid.Bool().Draw(t, "v6")
		f.proto = rapid.SampledFrom([]uint8{protoTCP, protoUDP}).Draw(t, "proto")
		f.src, f.dst = 1, uint8(rapid.IntRange(1, 2).Draw(t, "dst"))
		f.sp, f.dp = 1000, uint16(rapid.IntRange(1, 2).Draw(t, "port"))
		f.df = rapid.Bool().Draw(t, "df")
		f.ttl, f.tos, f.window, f.flags = 64, rapid.SampledFrom([]uint8{0, 2}).Draw(t, "tos"), 500, tcpACK
		f.seq = rapid.SampledFrom([]uint32{0, 1<<32 - 2000}).Draw(t, "seq")
		f.id = rapid.SampledFrom([]uint16{0, 0xfffe}).Draw(t, "id")
		idStep[i] = rapid.SampledFrom([]uint16{0, 1, 1, 7}).Draw(t, "id step")
		if f.proto == protoTCP && rapid.Bool().Draw(t, "timestamps") {
			f.opt = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
		}
		sizes[i] = rapid.SampledFrom([]int{1, 10, 100, 1000, 1400}).Draw(t, "size")
	}
	for range rapid.IntRange(1, 60).Draw(t, "bursts") {
		i := rapid.IntRange(0, len(flows)-1).Draw(t, "flow")
		f := &flows[i]
		for range rapid.SampledFrom([]int{1, 2, 5, 50}).Draw(t, "burst") {
			p := *f
			p.data = bytes.Repeat([]byte{byte(len(pkts) * 7)}, sizes[i])
			after := func(*desc) {}
			damage := -1
			switch rapid.IntRange(0, 40).Draw(t, "what") {
			case 0:
				p.data = p.data[:rapid.IntRange(0, len(p.data)).Draw(t, "short")]
			case 1:
				p.data = append(p.data, make([]byte, rapid.IntRange(1, 50).Draw(t, "long"))...)
			case 2:
				p.flags = rapid.Uint8().Draw(t, "flags")
			case 3:
				p.flags |= tcpPSH
			case 4:
				f.ack++
			case 5:
				f.window++
			case 6:
				f.tos ^= 3
				f.flow++
			case 7:
				p.seq += rapid.Uint32Range(1, 3000).Draw(t, "gap") // reordered or lost
			case 8:
				damage = rapid.IntRange(0, 1<<16).Draw(t, "damage")
			case 9:
				p.ttl--
			case 10:
				f.df = !f.df
			case 11:
				p.id += 5
			case 12:
				if len(p.opt) > 0 {
					after = func(f *desc) { f.opt = append(bytes.Clone(f.opt[:11]), f.opt[11]+1) }
				}
			case 13:
				if !p.v6 {
					p.ipOpt = []byte{1, 1, 1, 1}
				}
			case 14:
				p.proto = 1 // ICMP, more or less
			}
			b := p.build(false)
			if p.proto == protoUDP && rapid.IntRange(0, 30).Draw(t, "no checksum") == 0 {
				b[p.transport()+6], b[p.transport()+7] = 0, 0
			}
			if damage >= 0 {
				bit := damage % (len(b) * 8)
				if bit >= 4 { // it must stay an IP packet, or the queue refuses it
					b[bit/8] ^= 0x80 >> (bit % 8)
				}
			}
			pkts = append(pkts, b)
			f.seq += uint32(len(p.data))
			f.id += idStep[i]
			after(f)
		}
	}
	return pkts
}

func coalesceProperty(t *rapid.T) {
	pkts := drawStream(t)
	off := Offloads{TCP: rapid.Bool().Draw(t, "tcp offload"), UDP: rapid.Bool().Draw(t, "udp offload")}
	out, writes := through(t, pkts, off)
	sameStream(t, pkts, out)
	if !off.TCP && !off.UDP && writes != len(pkts) {
		t.Fatalf("%d writes of %d packets without offload", writes, len(pkts))
	}
}

func TestCoalesceModel(t *testing.T) { rapid.Check(t, coalesceProperty) }

// FuzzCoalesce: any stream of packets comes out as the same stream.
func FuzzCoalesce(f *testing.F) { f.Fuzz(rapid.MakeFuzz(coalesceProperty)) }

// FuzzCoalesceRaw: what makes no sense as a packet does no harm: it is written as it is.
func FuzzCoalesceRaw(f *testing.F) {
	for _, d := range []desc{
		{proto: protoTCP, data: make([]byte, 30), flags: tcpACK, opt: make([]byte, 12)},
		{proto: protoTCP, v6: true, data: make([]byte, 30), flags: 0x18},
		{proto: protoUDP, data: make([]byte, 30)},
		{proto: protoUDP, v6: true, data: make([]byte, 30)},
	} {
		a := d
		a.seq += 30
		a.id++
		f.Add(d.build(false), a.build(false))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if !isIP(a) || !isIP(b) || len(a) > 0xffff || len(b) > 0xffff {
			q, _ := newFakeQueue(Offloads{})
			if n, err := q.WriteBatch(batch([][]byte{a, b})); n == 2 || err == nil {
				t.Fatalf("%d written, %v", n, err)
			}
			return
		}
		in := [][]byte{a, b, a}
		out, _ := through(t, in, Offloads{TCP: true, UDP: true})
		sameStream(t, in, out)
	})
}

// What should be glued is: the number of writes is part of the contract, or all of this is in vain.
func TestCoalesceWrites(t *testing.T) {
	on := Offloads{Checksum: true, TCP: true, UDP: true}
	run := func(d desc, n, size int) (pkts [][]byte) {
		d.data = make([]byte, n*size)
		return d.segments(size)
	}
	tcp4 := desc{proto: protoTCP, flags: tcpACK, df: true, ttl: 64, sp: 1, dp: 2}
	tcp6 := desc{v6: true, proto: protoTCP, flags: tcpACK, ttl: 64, sp: 1, dp: 2}
	udp4 := desc{proto: protoUDP, ttl: 64, sp: 1, dp: 2}
	udp6 := desc{v6: true, proto: protoUDP, ttl: 64, sp: 1, dp: 2}
	other := tcp4
	other.sp = 99
	psh := tcp4
	psh.flags |= tcpPSH
	fixedID := run(tcp4, 10, 1000)
	for i, p := range fixedID {
		d, _ := parse(p)
		d.id = 0
		fixedID[i] = d.build(false)
	}
	ack := tcp4
	ack.data = nil
	weave := func(a, b [][]byte) (out [][]byte) {
		for i := range a {
			out = append(out, a[i], b[i])
		}
		return out
	}
	cat := func(s ...[][]byte) (out [][]byte) {
		for _, x := range s {
			out = append(out, x...)
		}
		return out
	}
	icmp := desc{proto: protoUDP, data: make([]byte, 8)}.build(false)
	icmp[9] = 1
	for _, c := range []struct {
		name   string
		pkts   [][]byte
		off    Offloads
		writes int
	}{
		{"TCP IPv4", run(tcp4, 40, 1400), on, 1},
		{"TCP IPv6", run(tcp6, 40, 1400), on, 1},
		{"UDP IPv4", run(udp4, 40, 1400), on, 1},
		{"UDP IPv6", run(udp6, 40, 1400), on, 1},
		{"PSH at the end", run(psh, 40, 1400), on, 1},
		{"two pushed runs", cat(run(psh, 5, 1400), run(desc{proto: protoTCP, flags: tcpACK | tcpPSH, df: true, ttl: 64, sp: 1, dp: 2, seq: 7000, id: 5}, 5, 1400)), on, 2},
		{"constant identification", fixedID, on, 1},
		{"longer than 64 kB", run(tcp4, 47, 1400), on, 2},
		{"128 small TCP segments", run(tcp4, 129, 10), on, 2},
		{"64 small UDP datagrams", run(udp4, 65, 10), on, 2},
		{"two flows in turn", weave(run(tcp4, 40, 1400), run(other, 40, 1400)), on, 2},
		{"ICMP in between", cat(run(tcp4, 1, 100), [][]byte{icmp}, run(other, 1, 100)), on, 3},
		{"pure acknowledgements", [][]byte{ack.build(false), ack.build(false)}, on, 2},
		{"TCP off", run(tcp4, 40, 1400), Offloads{UDP: true}, 40},
		{"UDP off", run(udp4, 40, 1400), Offloads{TCP: true}, 40},
		{"single", run(tcp4, 1, 1400), on, 1},
	} {
		out, writes := through(t, c.pkts, c.off)
		sameStream(t, c.pkts, out)
		if writes != c.writes {
			t.Errorf("%s: %d writes, want %d", c.name, writes, c.writes)
		}
	}
}

// Each of these must not be glued to the packet before it.
func TestCoalesceRefuses(t *testing.T) {
	tcp := desc{proto: protoTCP, flags: tcpACK, ttl: 64, sp: 1, dp: 2, opt: make([]byte, 12), window: 5, id: 7}
	udp := desc{proto: protoUDP, ttl: 64, sp: 1, dp: 2, id: 7}
	for name, c := range map[string]struct {
		d      desc
		change func(d *desc)
		raw    func(b []byte)
	}{
		"gap":                   {tcp, func(d *desc) { d.seq++ }, nil},
		"overlap":               {tcp, func(d *desc) { d.seq-- }, nil},
		"acknowledgement":       {tcp, func(d *desc) { d.ack++ }, nil},
		"window":                {tcp, func(d *desc) { d.window++ }, nil},
		"option":                {tcp, func(d *desc) { d.opt[11]++ }, nil},
		"option length":         {tcp, func(d *desc) { d.opt = d.opt[:8] }, nil},
		"FIN":                   {tcp, func(d *desc) { d.flags |= tcpFIN }, nil},
		"SYN":                   {tcp, func(d *desc) { d.flags |= 2 }, nil},
		"RST":                   {tcp, func(d *desc) { d.flags |= 4 }, nil},
		"URG":                   {tcp, func(d *desc) { d.flags |= 0x20 }, nil},
		"ECE":                   {tcp, func(d *desc) { d.flags |= 0x40 }, nil},
		"CWR":                   {tcp, func(d *desc) { d.flags |= tcpCWR }, nil},
		"no ACK":                {tcp, func(d *desc) { d.flags = 0 }, nil},
		"longer than the first": {tcp, func(d *desc) { d.data = append(d.data, 1) }, nil},
		"no data":               {tcp, func(d *desc) { d.data = nil }, nil},
		"CE on one":             {tcp, func(d *desc) { d.tos = 3 }, nil},
		"TTL":                   {tcp, func(d *desc) { d.ttl-- }, nil},
		"DF":                    {tcp, func(d *desc) { d.df = true }, nil},
		"identification":        {tcp, func(d *desc) { d.id++ }, nil},
		"same identification":   {tcp, func(d *desc) { d.id-- }, nil},
		"IP option":             {tcp, func(d *desc) { d.ipOpt = make([]byte, 4) }, nil},
		"TCP checksum":          {tcp, nil, func(b []byte) { b[len(b)-1] ^= 1 }},
		"IP checksum":           {tcp, nil, func(b []byte) { b[10] ^= 1 }},
		"first fragment":        {tcp, nil, func(b []byte) { b[6] |= 0x20 }},
		"later fragment":        {tcp, nil, func(b []byte) { b[7] = 1 }},
		"reserved bit":          {tcp, nil, func(b []byte) { b[6] |= 0x80 }},
		"UDP longer":            {udp, func(d *desc) { d.data = append(d.data, 1) }, nil},
		"UDP empty":             {udp, func(d *desc) { d.data = nil }, nil},
		"UDP checksum":          {udp, nil, func(b []byte) { b[len(b)-1] ^= 1 }},
		"UDP without checksum":  {udp, nil, func(b []byte) { b[26], b[27] = 0, 0 }},
		"UDP length":            {udp, nil, func(b []byte) { b[25]-- }},
		"other destination":     {udp, func(d *desc) { d.dst++ }, nil},
		"other port":            {udp, func(d *desc) { d.dp++ }, nil},
	} {
		for _, v6 := range []bool{false, true} {
			d := c.d
			d.v6 = v6
			d.opt = bytes.Clone(d.opt)
			d.data = make([]byte, 100)
			first := d.build(false)
			d.seq += 100
			d.id++
			if c.change != nil {
				c.change(&d)
			}
			second := d.build(false)
			if v6 && (c.raw != nil || bytes.Equal(second, func() []byte { e := d; e.df, e.id, e.ipOpt = false, 0, nil; return e.build(false) }()) && (d.df || d.id != 8 || d.ipOpt != nil)) {
				continue // a field that IPv6 does not have
			}
			if c.raw != nil {
				c.raw(second)
			}
			in := [][]byte{first, second}
			out, writes := through(t, in, Offloads{TCP: true, UDP: true})
			sameStream(t, in, out)
			if writes != 2 {
				t.Errorf("%s (IPv6 %t): glued", name, v6)
			}
		}
	}
}

// Flows that the coalescer's hash cannot tell apart are told apart all the same.
func TestCoalesceCollision(t *testing.T) {
	for _, c := range []struct {
		v6   bool
		flip []int // octets of the packet whose lowest bits cancel out in the hash
	}{
		{flip: []int{12 + 2, 20}},
		{flip: []int{12 + 5, 20 + 3}},
		{v6: true, flip: []int{8 + 8, 8 + 24 + 4}},
		{v6: true, flip: []int{8 + 8 + 5, 8 + 24 + 1}},
		{v6: true, flip: []int{8 + 8 + 2, 40}},
		{v6: true, flip: []int{8 + 24 + 6, 40}},
	} {
		d := desc{v6: c.v6, proto: protoUDP, ttl: 64, sp: 0x1234, dp: 0x5678, data: make([]byte, 100), id: 1, df: true}
		a := d.build(false)
		e := d
		e.id++
		b := e.build(false)
		for _, at := range c.flip {
			b[at] ^= 1
		}
		var fa, fb fields
		if !fa.classify(a) || !fb.classify(b) || fa.hash != fb.hash {
			t.Errorf("IPv6 %t, %v: hashes %#x, %#x: not the collision that is to be tested", c.v6, c.flip, fa.hash, fb.hash)
		}
		f, _ := parse(b)
		in := [][]byte{a, f.build(false)}
		out, writes := through(t, in, Offloads{TCP: true, UDP: true})
		sameStream(t, in, out)
		if writes != 2 {
			t.Errorf("IPv6 %t, %v: glued", c.v6, c.flip)
		}
	}
}

// A kernel that takes no UDP super-packets although it said so gets single packets.
func TestWriteFallback(t *testing.T) {
	for _, d := range []desc{
		{proto: protoTCP, flags: tcpACK | tcpPSH, ttl: 64, opt: make([]byte, 12)},
		{proto: protoUDP, ttl: 64},
		{proto: protoTCP, v6: true, flags: tcpACK, ttl: 64},
		{proto: protoUDP, v6: true, ttl: 64},
	} {
		d.data = make([]byte, 10500)
		pkts := d.segments(1000)
		q, k := newFakeQueue(Offloads{TCP: true, UDP: true})
		k.refuse = func(b []byte) unix.Errno {
			if b[1] != gsoNone {
				return unix.EINVAL
			}
			return 0
		}
		if n, err := q.WriteBatch(batch(pkts)); n != 11 || err != nil {
			t.Fatalf("%d written, %v", n, err)
		}
		for i := range k.written {
			k.written[i] = k.written[i][virtioHeaderLen:]
		}
		compare(t, k.written, pkts)
		if c := q.Counters(); c.OffloadFallbacks != 1 || c.WritePackets != 11 || c.WriteErrors != 0 {
			t.Fatalf("counters %+v", c)
		}
	}
}

// A device that is full for a moment, and signals, cost nothing but time; also in the middle of what
// the kernel did not take together.
func TestWriteAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pkts := drawStream(t)
		fallback := rapid.Bool().Draw(t, "no super-packets")
		seed := rapid.Uint64().Draw(t, "seed")
		q, k := newFakeQueue(Offloads{TCP: true, UDP: true})
		k.refuse = func(b []byte) unix.Errno {
			seed = seed*6364136223846793005 + 1442695040888963407
			switch {
			case seed>>62 == 0:
				return unix.EAGAIN
			case seed>>62 == 1:
				return unix.EINTR
			case fallback && b[1] != gsoNone:
				return unix.EINVAL
			}
			return 0
		}
		if n, err := q.WriteBatch(batch(pkts)); n != len(pkts) || err != nil {
			t.Fatalf("%d of %d written: %v", n, len(pkts), err)
		}
		var out [][]byte
		size := 0
		for _, b := range k.written {
			cut, err := kernel(b)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, cut...)
		}
		for _, p := range pkts {
			size += len(p)
		}
		sameStream(t, pkts, out)
		if c := q.Counters(); c.WritePackets != uint64(len(pkts)) || c.WriteBytes != uint64(size) || c.WriteErrors != 0 ||
			!fallback && c.WriteCalls != uint64(len(k.written)) {
			t.Fatalf("counters %+v, %d packets of %d octets in %d writes", c, len(pkts), size, len(k.written))
		}
	})
}

func TestWriteErrors(t *testing.T) {
	good := desc{proto: protoUDP, data: make([]byte, 10)}.build(false)
	q, k := newFakeQueue(Offloads{})
	pkts := batch([][]byte{good, good, good, good, {0x55, 1}, nil})
	pkts[1].Off = VirtioHeaderLen - 1
	pkts[2].Len++
	if n, err := q.WriteBatch(pkts); n != 2 || !errors.Is(err, ErrNoHeadroom) || len(k.written) != 2 {
		t.Fatalf("%d written, %v", n, err)
	}
	if n, err := q.WriteBatch(pkts[4:]); n != 0 || !errors.Is(err, ErrNotIP) {
		t.Fatalf("%d written, %v", n, err)
	}
	k.refuse = func([]byte) unix.Errno {
		if len(k.written) == 3 {
			k.written = append(k.written, nil)
			return unix.EIO
		}
		return 0
	}
	if n, err := q.WriteBatch(batch([][]byte{good, good, good})); n != 2 || !errors.Is(err, unix.EIO) {
		t.Fatalf("%d written, %v", n, err)
	}
	if n, err := q.WriteBatch(nil); n != 0 || err != nil {
		t.Fatalf("empty batch: %d, %v", n, err)
	}
	if c := q.Counters(); c.WriteErrors != 7 || c.WritePackets != 4 {
		t.Fatalf("counters %+v", c)
	}
}

func TestOffloadFallback(t *testing.T) {
	for _, c := range []struct {
		name   string
		want   bool
		takes  func(flags int) bool
		wanted Offloads
	}{
		{"everything", true, func(int) bool { return true }, Offloads{true, true, true}},
		{"no USO (Linux before 6.2)", true, func(f int) bool { return f&(unix.TUN_F_USO4|unix.TUN_F_USO6) == 0 }, Offloads{true, true, false}},
		{"checksum only", true, func(f int) bool { return f&^unix.TUN_F_CSUM == 0 }, Offloads{true, false, false}},
		{"nothing", true, func(f int) bool { return f == 0 }, Offloads{}},
		{"not asked for", false, func(f int) bool { return f == 0 }, Offloads{}},
	} {
		last := -1
		got, err := setOffload(c.want, func(flags int) error {
			if !c.takes(flags) {
				return unix.EINVAL
			}
			last = flags
			return nil
		})
		if err != nil || got != c.wanted || (last != 0) != got.Checksum {
			t.Errorf("%s: %+v, %v, last flags %#x", c.name, got, err, last)
		}
	}
	if _, err := setOffload(true, func(int) error { return unix.EBADF }); !errors.Is(err, unix.EBADF) {
		t.Errorf("dead descriptor: %v", err)
	}
}

func TestWriteAllocations(t *testing.T) {
	d := desc{proto: protoTCP, flags: tcpACK, data: make([]byte, 40000)}
	src := d.segments(1000)
	q, _ := newFakeQueue(Offloads{TCP: true, UDP: true})
	q.write.sys = func(uintptr, []unix.Iovec) unix.Errno { return 0 }
	pkts := batch(src)
	if n := testing.AllocsPerRun(50, func() {
		for i := range pkts {
			copy(pkts[i].Buf[VirtioHeaderLen:], src[i])
		}
		if _, err := q.WriteBatch(pkts); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkCoalesce is WriteBatch without the system call.
func BenchmarkCoalesce(b *testing.B) {
	for _, c := range []struct {
		name     string
		d        desc
		n, size  int
		flows    int
		perFlow  int // packets in a row
		minRatio int
	}{
		{"tcp4/45x1400", desc{proto: protoTCP, flags: tcpACK, opt: make([]byte, 12)}, 45, 1400, 1, 45, 45},
		{"tcp6/45x1400", desc{v6: true, proto: protoTCP, flags: tcpACK, opt: make([]byte, 12)}, 45, 1400, 1, 45, 45},
		{"udp4/64x200", desc{proto: protoUDP}, 64, 200, 1, 64, 64},
		{"udp4/64x200/4-flows", desc{proto: protoUDP}, 64, 200, 4, 1, 16},
		{"udp4/64x200/64-flows", desc{proto: protoUDP}, 64, 200, 64, 1, 1},
		{"udp4/64x1400/64-flows", desc{proto: protoUDP}, 64, 1400, 64, 1, 1},
		{"tcp4/64x0/1-flow", desc{proto: protoTCP, flags: tcpACK, opt: make([]byte, 12)}, 64, 0, 1, 64, 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			var src [][]byte
			for i := range c.n {
				d := c.d
				f := i / c.perFlow % c.flows
				k := i/(c.perFlow*c.flows)*c.perFlow + i%c.perFlow // in its flow
				d.sp, d.dp, d.df, d.ttl = uint16(1000+f), 9, true, 64
				d.id, d.seq = uint16(k), uint32(k*c.size)
				d.data = bytes.Repeat([]byte{byte(i)}, c.size)
				src = append(src, d.build(false))
			}
			q, _ := newFakeQueue(Offloads{TCP: true, UDP: true})
			writes := 0
			q.write.sys = func(uintptr, []unix.Iovec) unix.Errno { writes++; return 0 }
			pkts := batch(src)
			b.SetBytes(int64(c.n * len(src[0])))
			b.ReportAllocs()
			rounds := 0
			for b.Loop() {
				for f := range c.flows { // only the heads are changed
					i := f * c.perFlow
					copy(pkts[i].Buf[VirtioHeaderLen:], src[i][:min(len(src[i]), 72)])
				}
				if _, err := q.WriteBatch(pkts); err != nil {
					b.Fatal(err)
				}
				rounds++
			}
			if writes != rounds*c.n/c.minRatio {
				b.Fatalf("%d writes in %d rounds", writes, rounds)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rounds*c.n), "ns/packet")
		})
	}
}
