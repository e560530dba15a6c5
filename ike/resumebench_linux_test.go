package ike_test

import (
	"bytes"
	"syscall"
	"testing"
	"time"

	"wardgate/ike"
)

// BenchmarkResume is one resumption, both ends together, with two certificate rounds judged anew
// ("judged") or with what judges them left out, and with a pre-shared key.
func BenchmarkResume(b *testing.B) {
	for _, c := range []struct {
		name   string
		both   func(*ike.PeerConfig)
		verify func(ike.CertQuery) error
	}{
		{"two rounds, judged", nil, nil},
		{"two rounds, protocol alone", nil, func(ike.CertQuery) error { return nil }},
		{"psk", psk, nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			edit := func(cfg *ike.Config) { cfg.Verify = c.verify }
			r := newResuming(b, pairOptions{both: c.both, ea: edit, eb: edit})
			r.w.Quiet, r.w.Tap = true, nil
			r.up()
			r.w.Token = 0
			before := cpuTime(b)
			b.ResetTimer()
			for b.Loop() {
				r.a.Endpoint.Lose()
				initiate(b, r.a, "a-b")
				r.w.For(60 * time.Millisecond)
			}
			if i := ikeOf(b, r.a); !i.Resumed {
				b.Error("not resumed")
			}
			used := cpuTime(b) - before
			b.ReportMetric(float64(used.Microseconds())/float64(b.N), "CPU-µs/op")
			b.ReportMetric(2*float64(b.N)/used.Seconds(), "resumptions/s/core/end")
		})
	}
}

// FuzzTicket: whatever a peer shows as a ticket, and whatever was in one, is taken or refused.
func FuzzTicket(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5}, []byte{})
	f.Add(bytes.Repeat([]byte{1}, 200), append([]byte{0, 3, 'a', '-', 'b'}, make([]byte, 160)...))
	f.Fuzz(func(t *testing.T, ticket, plain []byte) {
		if ike.OpenTicket(ticket, ticketSecret(1)) == nil {
			t.Error("a forged ticket was opened")
		}
		if again, err := ike.DecodeSession(plain); err == nil && !bytes.Equal(again, plain) {
			// The role is any octet but 1 for the responder's; nothing else may differ.
			if len(again) != len(plain) {
				t.Errorf("%x became %x", plain, again)
			}
		}
	})
}

// cpuTime is what this process has used of the processors, whatever else runs on them.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
