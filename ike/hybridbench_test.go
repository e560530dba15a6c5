package ike_test

import (
	"syscall"
	"testing"
	"time"

	"wardgate/ike"
)

// BenchmarkHybridSetup is one set-up and its end, both ends together, with and without ML-KEM: what
// IKE_INTERMEDIATE costs. The rekeys are those of a CHILD SA and of the IKE SA. The processor's time
// is given too, since the machine may have other things to do.
func BenchmarkHybridSetup(b *testing.B) {
	for _, auth := range []struct {
		name string
		both func(*ike.PeerConfig)
	}{{"psk", psk}, {"certificate", single}, {"two", func(*ike.PeerConfig) {}}} {
		for _, s := range []struct{ name, ike, esp string }{
			{"x25519", defaultIKE, defaultESP},
			{"x25519-mlkem768", hybridIKE, hybridESP},
			{"ecp384-mlkem1024", "aes256gcm16-prfsha384-ecp384-mlkem1024", "aes256gcm16-ecp384-mlkem1024"},
		} {
			o := pairOptions{both: func(c *ike.PeerConfig) {
				auth.both(c)
				suites(b, s.ike, s.esp)(c)
			}}
			b.Run("setup/"+auth.name+"/"+s.name, func(b *testing.B) {
				p := newPair(b, o)
				defer processor(b)()
				for b.Loop() {
					initiate(b, p.a, "a-b")
					p.w.For(time.Second)
					if len(p.a.Children) != 1 || len(p.b.Children) != 1 {
						b.Fatalf("did not come up: %s, %s", texts(p.a.Refusals), texts(p.b.Refusals))
					}
					p.a.Endpoint.Terminate("a-b", "again")
					p.w.For(time.Second)
					p.w.Forget()
				}
			})
			if auth.name != "psk" {
				continue
			}
			b.Run("rekeys/"+s.name, func(b *testing.B) {
				p := newPair(b, o)
				p.up()
				defer processor(b)()
				for b.Loop() {
					_ = p.a.Endpoint.RekeyChild(childOf(b, p.a).ID)
					p.w.For(time.Second)
					_ = p.a.Endpoint.RekeyIKE(ikeOf(b, p.a).ID)
					p.w.For(time.Second)
					p.w.Forget()
				}
				p.counts(1, 1)
			})
		}
	}
}

// processor reports the time of the processor from now until the function it returns is called.
func processor(b *testing.B) func() {
	used := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu-µs/op") }
}
