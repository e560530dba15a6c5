package message_test

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"wardgate/ike/message"
)

// same compares parsed values; nil and empty slices are the same octets.
func same(a, b any) string {
	return cmp.Diff(a, b, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(message.Message{}),
		cmp.Comparer(func(x, y netip.Addr) bool { return x == y }))
}

func octets(lo, hi int) *rapid.Generator[[]byte] { return rapid.SliceOfN(rapid.Byte(), lo, hi) }

var genGeneric = rapid.Custom(func(t *rapid.T) message.Generic {
	return message.Generic{Critical: rapid.Bool().Draw(t, "critical")}
})

var genAttribute = rapid.Custom(func(t *rapid.T) message.Attribute {
	a := message.Attribute{Type: message.AttributeType(rapid.Uint16Range(0, 0x7fff).Draw(t, "type"))}
	if rapid.Bool().Draw(t, "long") {
		a.Long = append([]byte{}, octets(0, 20).Draw(t, "value")...)
	} else {
		a.Value = rapid.Uint16().Draw(t, "value")
	}
	return a
})

var genTransform = rapid.Custom(func(t *rapid.T) message.Transform {
	return message.Transform{
		Type:       message.TransformType(rapid.Byte().Draw(t, "type")),
		ID:         rapid.Uint16().Draw(t, "id"),
		Attributes: rapid.SliceOfN(genAttribute, 0, message.MaxAttributes).Draw(t, "attributes"),
	}
})

var genProposal = rapid.Custom(func(t *rapid.T) message.Proposal {
	return message.Proposal{
		Number:     rapid.Byte().Draw(t, "number"),
		Protocol:   message.ProtocolID(rapid.Byte().Draw(t, "protocol")),
		SPI:        octets(0, 9).Draw(t, "spi"),
		Transforms: rapid.SliceOfN(genTransform, 0, 9).Draw(t, "transforms"),
	}
})

var genSelector = rapid.Custom(func(t *rapid.T) message.Selector {
	proto := rapid.Byte().Draw(t, "protocol")
	if rapid.IntRange(0, 5).Draw(t, "kind") == 0 {
		return message.Selector{Type: message.TSType(rapid.ByteRange(9, 255).Draw(t, "type")), Protocol: proto, Data: octets(0, 40).Draw(t, "data")}
	}
	n := rapid.SampledFrom([]int{4, 16}).Draw(t, "family")
	a, _ := netip.AddrFromSlice(octets(n, n).Draw(t, "start"))
	b, _ := netip.AddrFromSlice(octets(n, n).Draw(t, "end"))
	if b.Less(a) {
		a, b = b, a
	}
	p, q := rapid.Uint16().Draw(t, "start port"), rapid.Uint16().Draw(t, "end port")
	if p > q && (p != 0xffff || q != 0) {
		p, q = q, p
	}
	s := message.Selector{Type: message.TSIPv4AddrRange, Protocol: proto, StartPort: p, EndPort: q, Start: a, End: b}
	if n == 16 {
		s.Type = message.TSIPv6AddrRange
	}
	return s
})

var genPayload = rapid.Custom(func(t *rapid.T) message.Payload {
	g := genGeneric.Draw(t, "generic")
	data := octets(0, 60).Draw(t, "data")
	responder := rapid.Bool().Draw(t, "responder")
	switch rapid.IntRange(0, 14).Draw(t, "payload") {
	case 14:
		n := rapid.IntRange(1, 64).Draw(t, "key")
		return &message.PuzzleSolution{Generic: g, Data: octets(4*n, 4*n).Draw(t, "keys")}
	case 0:
		return &message.SA{Generic: g, Proposals: rapid.SliceOfN(genProposal, 1, 5).Draw(t, "proposals")}
	case 1:
		return &message.KE{Generic: g, Method: message.KEMethod(rapid.Uint16().Draw(t, "method")), Data: data}
	case 2:
		id := &message.ID{Generic: g, Responder: responder, Data: append([]byte{1}, data...)}
		id.Type = rapid.SampledFrom([]message.IDType{message.IDFQDN, message.IDRFC822Addr, message.IDKeyID, message.IDDERASN1DN, message.IDType(200)}).Draw(t, "type")
		copy(id.Reserved[:], octets(3, 3).Draw(t, "reserved"))
		return id
	case 3:
		return &message.Cert{Generic: g, Encoding: message.CertEncoding(rapid.Byte().Draw(t, "encoding")), Data: data}
	case 4:
		return &message.CertReq{Generic: g, Encoding: message.CertEncoding(rapid.Byte().Draw(t, "encoding")), Data: data}
	case 5:
		return &message.Auth{Generic: g, Method: message.AuthMethod(rapid.Byte().Draw(t, "method")), Data: data}
	case 6:
		return &message.Nonce{Generic: g, Data: octets(message.MinNonce, message.MaxNonce).Draw(t, "nonce")}
	case 7:
		return &message.Notify{
			Generic: g, Protocol: message.ProtocolID(rapid.Byte().Draw(t, "protocol")), SPI: octets(0, 8).Draw(t, "spi"),
			Type: message.NotifyType(rapid.Uint16().Draw(t, "type")), Data: data,
		}
	case 8:
		if responder {
			return &message.Delete{Generic: g, Protocol: message.ProtocolIKE}
		}
		return &message.Delete{Generic: g, Protocol: message.ProtocolESP, SPIs: rapid.SliceOfN(rapid.Uint32(), 0, 20).Draw(t, "spis")}
	case 9:
		return &message.VendorID{Generic: g, Data: data}
	case 10:
		return &message.TS{Generic: g, Responder: responder, Selectors: rapid.SliceOfN(genSelector, 1, 12).Draw(t, "selectors")}
	case 11:
		cp := &message.CP{Generic: g, Type: message.CfgType(rapid.Byte().Draw(t, "type"))}
		for range rapid.IntRange(0, 8).Draw(t, "attributes") {
			cp.Attributes = append(cp.Attributes, message.CfgAttribute{
				Type: message.CfgAttributeType(rapid.Uint16Range(0, 0x7fff).Draw(t, "attribute")), Value: octets(0, 20).Draw(t, "value"),
			})
		}
		return cp
	case 12:
		return &message.EAP{Generic: g, Code: message.EAPCode(rapid.Byte().Draw(t, "code")), Identifier: rapid.Byte().Draw(t, "identifier"), Data: data}
	default:
		return &message.Unknown{Type: message.PayloadType(rapid.SampledFrom([]int{1, 32, 49, 128, 255}).Draw(t, "type")), Data: data}
	}
})

var genHeader = rapid.Custom(func(t *rapid.T) message.Header {
	h := message.Header{
		Minor:     rapid.ByteRange(0, 15).Draw(t, "minor"),
		Exchange:  message.ExchangeType(rapid.Byte().Draw(t, "exchange")),
		Flags:     message.HeaderFlags(rapid.Byte().Draw(t, "flags")) & (message.FlagInitiator | message.FlagResponse | message.FlagVersion),
		MessageID: rapid.Uint32().Draw(t, "message ID"),
	}
	copy(h.SPIi[:], octets(8, 8).Draw(t, "spii"))
	copy(h.SPIr[:], octets(8, 8).Draw(t, "spir"))
	return h
})

var genPayloads = rapid.Custom(func(t *rapid.T) message.Payloads {
	return rapid.SliceOfN(genPayload, 0, 12).Draw(t, "payloads")
})

// Whatever can be said in values comes back as the same values, and as the same octets.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h, ps := genHeader.Draw(t, "header"), genPayloads.Draw(t, "payloads")
		b, err := message.Encode(h, ps)
		if err != nil {
			t.Fatal(err)
		}
		m, err := message.Parse(b)
		if err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		if d := same(ps, m.Payloads); d != "" {
			t.Fatalf("payloads differ (-sent +parsed):\n%s", d)
		}
		if m.Header != h {
			t.Fatalf("header %+v, want %+v", m.Header, h)
		}
		again, err := m.Append([]byte("x"))
		if err != nil || !bytes.Equal(again[1:], b) {
			t.Fatalf("encodes again to %x, want %x (%v)", again, b, err)
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if _, err := message.Parse(b[:cut]); err == nil {
			t.Fatalf("the first %d of %d octets parse", cut, len(b))
		}
	})
}

// Sealed messages open to the same payloads, whole and in fragments that arrive in any order,
// some twice.
func TestRoundTripSealed(t *testing.T) {
	protectors := []message.Protector{testGCM, testCBC, plainProtector{}}
	rapid.Check(t, func(t *rapid.T) {
		h, ps := genHeader.Draw(t, "header"), genPayloads.Draw(t, "payloads")
		p := rapid.SampledFrom(protectors).Draw(t, "protector")
		size := rapid.SampledFrom([]int{0, 120, 200, 548, 1232}).Draw(t, "size")
		datagrams, err := message.Seal(h, ps, p, size)
		if err != nil {
			t.Fatal(err)
		}
		in, err := message.EncodeInner(ps)
		if err != nil {
			t.Fatal(err)
		}
		if size == 0 && len(datagrams) != 1 {
			t.Fatalf("%d datagrams though fragmentation is off", len(datagrams))
		}
		limit := size
		if size == 0 {
			limit = message.MaxMessage
		}
		checkFragments(t, datagrams, h, in, p, limit)
		if len(datagrams) == 1 {
			return
		}
		var asm message.Reassembler
		order := rapid.Permutation(datagrams).Draw(t, "order")
		for i, d := range order {
			m, err := message.Parse(d)
			if err != nil {
				t.Fatal(err)
			}
			f, err := m.OpenFragment(p)
			if err != nil {
				t.Fatal(err)
			}
			got, done, err := asm.Add(f)
			if err != nil || done != (i == len(order)-1) {
				t.Fatalf("fragment %d: done %v, %v", i, done, err)
			}
			if !done {
				if _, _, err := asm.Add(f); !errors.Is(err, message.ErrFragmentReplay) {
					t.Fatalf("replay: %v", err)
				}
				continue
			}
			if err := got.Parse(); err != nil {
				t.Fatal(err)
			}
			if d := same(ps, got.Payloads); d != "" {
				t.Fatal(d)
			}
		}
	})
}

// The size that chunkSize finds is the largest: one octet more would not fit.
func TestFragmentsFillDatagrams(t *testing.T) {
	in := message.Inner{First: message.PayloadVendorID, Plain: make([]byte, 9000)}
	for _, p := range []message.Protector{testGCM, testCBC, plainProtector{}} {
		for size := 90; size < 400; size++ {
			ds, err := in.Fragments(message.Header{}, p, size)
			if err != nil {
				continue // tiny sizes: more than 255 fragments
			}
			m, _ := message.Parse(ds[0])
			f, err := m.OpenFragment(p)
			if err != nil {
				t.Fatal(err)
			}
			if n := 36 + p.SealedLen(len(f.Plain)+1); n <= size {
				t.Fatalf("%T: %d octets of content in a datagram of %d, though %d fit", p, len(f.Plain), size, len(f.Plain)+1)
			}
		}
	}
}

func TestSealErrors(t *testing.T) {
	in := message.Inner{First: message.PayloadVendorID, Plain: make([]byte, 2000)}
	for _, size := range []int{-1, 1, 28, 36, 60, 61} {
		if _, err := in.Fragments(message.Header{}, testGCM, size); !errors.Is(err, message.ErrDatagramSize) {
			t.Errorf("size %d: %v, want ErrDatagramSize", size, err)
		}
	}
	var encode *message.EncodeError
	if _, err := in.Fragments(message.Header{}, testGCM, 62); !errors.As(err, &encode) {
		t.Errorf("2000 fragments: %v, want *EncodeError", err)
	}
	if _, err := in.AppendSealed(nil, message.Header{}, lyingProtector{}); !errors.Is(err, message.ErrSealedLength) {
		t.Errorf("%v, want ErrSealedLength", err)
	}
	in.Plain = make([]byte, message.MaxMessage)
	if _, err := in.Seal(message.Header{}, testGCM, 0); err == nil {
		t.Error("a message of more than 64 KB was sealed")
	}
	if _, err := in.Seal(message.Header{}, testGCM, 1232); err != nil {
		t.Errorf("64 KB in fragments: %v", err)
	}
}

func TestMaxMessageSize(t *testing.T) {
	for _, c := range []struct {
		ip         int
		ipv6, natT bool
		want       int
	}{
		{1280, true, false, 1232},
		{1280, true, true, 1228},
		{576, false, false, 548},
		{1280, false, true, 1248}, // what strongSwan's fragments have
		{20, true, true, 0},
	} {
		if got := message.MaxMessageSize(c.ip, c.ipv6, c.natT); got != c.want {
			t.Errorf("MaxMessageSize(%d, %v, %v) = %d, want %d", c.ip, c.ipv6, c.natT, got, c.want)
		}
	}
}
