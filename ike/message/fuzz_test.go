package message_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"wardgate/ike/message"
	"wardgate/internal/testvectors"
)

// seedMessages returns recorded messages and, where they are at hand, the hostile ones.
func seedMessages(f *testing.F) [][]byte {
	var out [][]byte
	for _, s := range liveScenarios {
		for _, m := range readLive(f, s).Msgs {
			out = append(out, m.Message)
		}
	}
	// Not by testvectors.Path: fuzzing goes on without them.
	if _, err := os.Stat(filepath.Join(testvectors.Root(), "..", "shared", "vectors", "malformed")); err == nil {
		for _, m := range readMalformed(f) {
			out = append(out, m.Payload, bytes.TrimPrefix(m.Payload, []byte{0, 0, 0, 0}))
		}
		for _, b := range readSeeds(f) {
			out = append(out, b)
		}
		out = append(out, binarySeeds(f)...)
	}
	return out
}

// FuzzMessage: whatever parses encodes to something stable that parses to the same values.
func FuzzMessage(f *testing.F) {
	for _, b := range seedMessages(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		exercise(b)
		m, err := message.Parse(b)
		if !bytes.Equal(b, before) {
			t.Fatal("Parse wrote to its input")
		}
		if err != nil {
			return
		}
		out, err := m.Append(nil)
		if err != nil {
			t.Fatalf("parsed, but does not encode: %v", err)
		}
		if len(out) != len(b) {
			t.Fatalf("%d octets encode to %d", len(b), len(out))
		}
		again, err := message.Parse(out)
		if err != nil {
			t.Fatalf("encodes to what does not parse: %v", err)
		}
		if d := same(m, again); d != "" {
			t.Fatalf("parses to other values (-first +second):\n%s", d)
		}
		if out2, err := again.Append(nil); err != nil || !bytes.Equal(out, out2) {
			t.Fatalf("encoding is not stable: %x, then %x (%v)", out, out2, err)
		}
	})
}

// FuzzPayloads: the same for each payload's body.
func FuzzPayloads(f *testing.F) {
	for _, s := range liveScenarios {
		for _, m := range readLive(f, s).Msgs {
			for _, p := range m.Inner {
				f.Add(byte(p.Type), p.Payload[1]&0x80 != 0, []byte(p.Payload[4:]))
			}
			if m.Keys != nil {
				continue
			}
			parsed, err := message.Parse(m.Message)
			if err != nil {
				f.Fatal(err)
			}
			for _, p := range parsed.Payloads {
				_, b, err := message.AppendPayloads(nil, message.Payloads{p})
				if err != nil {
					f.Fatal(err)
				}
				f.Add(byte(p.PayloadType()), false, b[4:])
			}
		}
	}
	f.Add(byte(message.PayloadCP), false, unhex("01000000 00010004 0a000001 00080000"))
	f.Add(byte(message.PayloadEAP), false, unhex("01010009 0161626364"))
	f.Add(byte(message.PayloadTSr), false, unhex("02000000 08000028 0000ffff"+
		"20010db8000000000000000000000000 20010db80000000000000000000000ff 0a000008 00010203"))
	f.Add(byte(message.PayloadPS), true, []byte{1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, typ byte, critical bool, body []byte) {
		p, err := message.ParseBody(message.PayloadType(typ), critical, body)
		if err != nil {
			_ = err.Error()
			return
		}
		if byte(p.PayloadType()) != typ || p.IsCritical() != critical {
			t.Fatalf("type %d critical %v became %d, %v", typ, critical, p.PayloadType(), p.IsCritical())
		}
		exercisePayloads(message.Payloads{p})
		if len(body) > 65531 {
			return
		}
		first, out, err := message.AppendPayloads(nil, message.Payloads{p})
		if err != nil {
			t.Fatalf("parsed, but does not encode: %v", err)
		}
		if byte(first) != typ || len(out) != 4+len(body) {
			t.Fatalf("%d octets encode to %d", 4+len(body), len(out))
		}
		ps, err := message.ParsePayloads(first, out)
		if err != nil || len(ps) != 1 {
			t.Fatalf("encodes to what does not parse: %v", err)
		}
		if d := same(p, ps[0]); d != "" {
			t.Fatalf("parses to other values (-first +second):\n%s", d)
		}
		if id, ok := p.(*message.ID); ok && !bytes.Equal(id.Body(), body) {
			t.Fatalf("ID.Body is %x, want what came: %x", id.Body(), body)
		}
	})
}

// FuzzChain: a chain of payloads, as it comes out of the Encrypted payload.
func FuzzChain(f *testing.F) {
	for _, s := range liveScenarios {
		for _, m := range readLive(f, s).Msgs {
			if m.First != nil && m.Fragment == nil {
				f.Add(byte(*m.First), []byte(m.Plain))
			}
		}
	}
	f.Fuzz(func(t *testing.T, first byte, b []byte) {
		ps, err := message.ParsePayloads(message.PayloadType(first), b)
		if err != nil {
			_ = err.Error()
			_ = message.NotifyFor(err)
			return
		}
		exercisePayloads(ps)
		got, out, err := message.AppendPayloads(nil, ps)
		if err != nil || byte(got) != first || len(out) != len(b) {
			t.Fatalf("first %d, %d octets of %d, %v", got, len(out), len(b), err)
		}
		again, err := message.ParsePayloads(got, out)
		if err != nil {
			t.Fatal(err)
		}
		if d := same(ps, again); d != "" {
			t.Fatalf("parses to other values (-first +second):\n%s", d)
		}
	})
}

// FuzzReassembler compares the Reassembler with the obvious model. Every three octets of
// script are one fragment: number, total, length.
func FuzzReassembler(f *testing.F) {
	f.Add([]byte{1, 2, 10, 2, 2, 3})
	f.Add([]byte{2, 3, 10, 3, 3, 3, 3, 3, 3, 1, 4, 0, 1, 3, 9})
	f.Add([]byte{1, 1, 0, 0, 1, 1, 2, 1, 1, 1, 255, 9})
	f.Fuzz(func(t *testing.T, script []byte) {
		var r message.Reassembler
		var model modelReassembler
		for i := 0; i+3 <= len(script) && i < 600; i += 3 {
			fr := message.Fragment{
				Number: uint16(script[i]), Total: uint16(script[i+1]),
				Plain: bytes.Repeat(script[i:i+1], int(script[i+2])),
			}
			in, done, err := r.Add(fr)
			plain, wantDone, ok := model.add(fr)
			if done != wantDone || (err == nil) != ok || !bytes.Equal(in.Plain, plain) {
				t.Fatalf("%d/%d: done %v %x %v, want %v %x %v", fr.Number, fr.Total, done, in.Plain, err, wantDone, plain, ok)
			}
			if have, total := r.Pending(); have > total || total > message.MaxFragments {
				t.Fatalf("%d of %d pending", have, total)
			}
		}
	})
}

// FuzzFragments: any content in datagrams of any size comes together again.
func FuzzFragments(f *testing.F) {
	f.Add([]byte("content of an Encrypted payload"), byte(35), uint16(80), true)
	f.Add(make([]byte, 3000), byte(41), uint16(548), false)
	f.Add([]byte{}, byte(0), uint16(1232), true)
	f.Fuzz(func(t *testing.T, plain []byte, first byte, size uint16, aead bool) {
		var p message.Protector = testCBC
		if aead {
			p = testGCM
		}
		in := message.Inner{First: message.PayloadType(first), Plain: plain}
		h := message.Header{Exchange: message.ExchangeIKEAuth, MessageID: 1, Flags: message.FlagInitiator}
		datagrams, err := in.Fragments(h, p, int(size))
		if err != nil {
			return // too small a size; see TestSealErrors
		}
		checkFragments(t, datagrams, h, in, p, int(size))
	})
}
