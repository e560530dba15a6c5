package message_test

import (
	"bytes"
	"errors"
	"testing"

	"wardgate/ike/message"
)

// The layout of RFC 8019, section 8.1.
func TestPuzzleNotify(t *testing.T) {
	n := message.NewPuzzle(message.PRFHMACSHA2256, 18)
	_, raw, err := message.AppendPayloads(nil, message.Payloads{n})
	if want := unhex("0000000b 00004032 000512"); err != nil || !bytes.Equal(raw, want) {
		t.Fatalf("%x, %v; want %x", raw, err, want)
	}
	if prf, difficulty, err := n.Puzzle(); err != nil || prf != message.PRFHMACSHA2256 || difficulty != 18 {
		t.Errorf("PRF %v, difficulty %d, %v", prf, difficulty, err)
	}
	for name, c := range map[string]struct {
		n  message.Notify
		ok bool
	}{
		"as hard as one can":      {message.Notify{Data: []byte{0, 5, 0}}, true},
		"the least":               {message.Notify{Data: []byte{0, 5, 8}}, true},
		"the most":                {message.Notify{Data: []byte{0, 5, 255}}, true},
		"too easy to be one":      {message.Notify{Data: []byte{0, 5, 7}}, false},
		"one zero bit":            {message.Notify{Data: []byte{0, 5, 1}}, false},
		"empty":                   {message.Notify{}, false},
		"short":                   {message.Notify{Data: []byte{0, 5}}, false},
		"long":                    {message.Notify{Data: []byte{0, 5, 18, 0}}, false},
		"with an SPI":             {message.Notify{SPI: []byte{1, 2, 3, 4}, Data: []byte{0, 5, 18}}, false},
		"of a protocol":           {message.Notify{Protocol: message.ProtocolIKE, Data: []byte{0, 5, 18}}, false},
		"of a PRF nobody knows":   {message.Notify{Data: []byte{255, 255, 18}}, true},
		"of a protocol, with SPI": {message.Notify{Protocol: message.ProtocolESP, SPI: []byte{1, 2, 3, 4}, Data: []byte{0, 5, 18}}, false},
	} {
		c.n.Type = message.NotifyPuzzle
		_, _, err := c.n.Puzzle()
		if (err == nil) != c.ok || err != nil && !errors.Is(err, message.ErrSyntax) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The layout of RFC 8019, section 8.2: four keys of one length.
func TestPuzzleSolution(t *testing.T) {
	ps := &message.PuzzleSolution{Data: unhex("061840 073324 0c8a2a 0d94c8")}
	_, raw, err := message.AppendPayloads(nil, message.Payloads{ps})
	if want := unhex("00000010 061840 073324 0c8a2a 0d94c8"); err != nil || !bytes.Equal(raw, want) {
		t.Fatalf("%x, %v; want %x", raw, err, want)
	}
	if got := ps.Key(2); !bytes.Equal(got, unhex("0c8a2a")) || cap(got) != 3 {
		t.Errorf("third key %x", got)
	}
	for n := range 70 {
		p, err := message.ParseBody(message.PayloadPS, false, make([]byte, n))
		if ok := n > 0 && n%4 == 0; (err == nil) != ok || err != nil && !errors.Is(err, message.ErrSyntax) {
			t.Errorf("%d octets: %v", n, err)
		} else if ok && len(p.(*message.PuzzleSolution).Key(3)) != n/4 {
			t.Errorf("%d octets: key of %d", n, len(p.(*message.PuzzleSolution).Key(3)))
		}
		_, _, err = message.AppendPayloads(nil, message.Payloads{&message.PuzzleSolution{Data: make([]byte, n)}})
		if ok := n > 0 && n%4 == 0; (err == nil) != ok {
			t.Errorf("%d octets: encoded with %v", n, err)
		}
	}
}

// RFC 8019, section 7.2.2: in IKE_AUTH the solution stands in clear in front of the Encrypted payload,
// in the first fragment only, and is covered by the ICV. Nothing else may stand there.
func TestSolutionInClear(t *testing.T) {
	p := newGCM(make([]byte, 36))
	h := message.Header{SPIi: message.SPI{1}, SPIr: message.SPI{2}, Exchange: message.ExchangeIKEAuth, Flags: message.FlagInitiator, MessageID: 1}
	ps := message.Payloads{&message.Nonce{Data: make([]byte, 200)}, message.NewNotify(message.NotifyInitialContact)}
	in, err := message.EncodeInner(ps)
	if err != nil {
		t.Fatal(err)
	}
	in.Solution = &message.PuzzleSolution{Data: bytes.Repeat([]byte{1, 2, 3, 4, 5}, 4)}
	for limit := range 400 {
		if limit > 0 && limit < 100 {
			continue
		}
		msgs, err := in.Seal(h, p, limit)
		if err != nil {
			t.Fatalf("limit %d: %v", limit, err)
		}
		var re message.Reassembler
		for i, raw := range msgs {
			if limit > 0 && len(raw) > limit {
				t.Fatalf("limit %d: message of %d octets", limit, len(raw))
			}
			m, err := message.Parse(raw)
			if err == nil {
				err = m.CheckOuter()
			}
			if err != nil {
				t.Fatalf("limit %d, message %d: %v", limit, i, err)
			}
			if s := m.Solution(); (s != nil) != (i == 0) || s != nil && !bytes.Equal(s.Data, in.Solution.Data) {
				t.Fatalf("limit %d, message %d: solution %v", limit, i, s)
			}
			if i == 0 {
				m.Payloads[0].(*message.PuzzleSolution).Data[0] ^= 1 // it aliases raw
				if _, err := m.Open(p); err == nil {
					t.Fatal("another solution is as good")
				}
				if _, err := m.OpenFragment(p); err == nil {
					t.Fatal("another solution is as good in a fragment")
				}
				m.Payloads[0].(*message.PuzzleSolution).Data[0] ^= 1
			}
			if !m.Encrypted.IsFragment() {
				if got, err := m.Open(p); err != nil || len(got.Payloads) != 2 {
					t.Fatalf("limit %d: %v", limit, err)
				}
				continue
			}
			f, err := m.OpenFragment(p)
			if err != nil {
				t.Fatalf("limit %d, message %d: %v", limit, i, err)
			}
			got, done, err := re.Add(f)
			if err != nil || done != (i == len(msgs)-1) || done && !bytes.Equal(got.Plain, in.Plain) {
				t.Fatalf("limit %d, message %d: done %v, %v", limit, i, done, err)
			}
		}
	}

	sealed := &message.Encrypted{Sealed: make([]byte, 40)}
	solution := in.Solution
	for name, m := range map[string]message.Message{
		"two":                 {Header: h, Payloads: message.Payloads{solution, solution}, Encrypted: sealed},
		"and a notify":        {Header: h, Payloads: message.Payloads{solution, message.NewNotify(message.NotifyCookie)}, Encrypted: sealed},
		"something else":      {Header: h, Payloads: message.Payloads{message.NewNotify(message.NotifyCookie)}, Encrypted: sealed},
		"the second fragment": {Header: h, Payloads: message.Payloads{solution}, Encrypted: &message.Encrypted{Number: 2, Total: 2, Sealed: sealed.Sealed}},
		"a response":          {Header: message.Header{Exchange: message.ExchangeIKEAuth, Flags: message.FlagResponse}, Payloads: message.Payloads{solution}, Encrypted: sealed},
		"another exchange":    {Header: message.Header{Exchange: message.ExchangeInformational}, Payloads: message.Payloads{solution}, Encrypted: sealed},
	} {
		if err := m.CheckOuter(); !errors.Is(err, message.ErrClearPayload) {
			t.Errorf("%s: %v, want %v", name, err, message.ErrClearPayload)
		}
	}
	m := message.Message{Header: h, Payloads: message.Payloads{solution}}
	if err := m.CheckOuter(); !errors.Is(err, message.ErrNotEncrypted) {
		t.Errorf("a solution alone: %v", err)
	}
}

// FuzzPuzzle: any notify and any solution.
func FuzzPuzzle(f *testing.F) {
	f.Add(unhex("000512"), unhex("061840 073324 0c8a2a 0d94c8"))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, notify, solution []byte) {
		n := &message.Notify{Type: message.NotifyPuzzle, Data: notify}
		prf, difficulty, err := n.Puzzle()
		if err == nil && !bytes.Equal(message.NewPuzzle(prf, difficulty).Data, notify) {
			t.Errorf("%x became PRF %d, difficulty %d", notify, prf, difficulty)
		}
		p, err := message.ParseBody(message.PayloadPS, false, solution)
		if err != nil {
			return
		}
		var keys []byte
		for i := range message.PuzzleKeys {
			keys = append(keys, p.(*message.PuzzleSolution).Key(i)...)
		}
		if !bytes.Equal(keys, solution) {
			t.Errorf("%x became keys %x", solution, keys)
		}
	})
}
