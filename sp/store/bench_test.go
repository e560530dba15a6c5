package store_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"wardgate/sp/registry"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

func eachBench(b *testing.B, run func(b *testing.B, s *store.Store)) {
	b.Helper()
	b.Run("sqlite", func(b *testing.B) { s := open(b, storetest.SQLite(b)); b.ReportAllocs(); b.ResetTimer(); run(b, s) })
	b.Run("postgres", func(b *testing.B) { s := open(b, storetest.Postgres(b)); b.ReportAllocs(); b.ResetTimer(); run(b, s) })
}

// Certificates of 64 devices at a time, each with request, end of the old one and record.
func BenchmarkIssue(b *testing.B) {
	eachBench(b, func(b *testing.B, s *store.Store) {
		var n atomic.Int64
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				i := n.Add(1)
				c := cert("g", fmt.Sprint("d", i%5000), i, t0, time.Hour)
				c.DER = make([]byte, 900)
				if err := s.Issue(b.Context(), store.Issue{Certificate: c}, t0); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

// The same, one after the other: each waits for a flush of its own.
func BenchmarkIssueAlone(b *testing.B) {
	eachBench(b, func(b *testing.B, s *store.Store) {
		for i := 1; b.Loop(); i++ {
			c := cert("g", fmt.Sprint("d", i%5000), int64(i), t0, time.Hour)
			c.DER = make([]byte, 900)
			ok(b, s.Issue(b.Context(), store.Issue{Certificate: c}, t0))
		}
	})
}

// 100 policies of 8 KiB in one call.
func BenchmarkPutPolicies(b *testing.B) {
	eachBench(b, func(b *testing.B, s *store.Store) {
		batch := make([]store.Policy, 100)
		for i := 1; b.Loop(); i++ {
			for d := range batch {
				batch[d] = pol(fmt.Sprint("d", d), uint64(i), "x")
				batch[d].JWS = append(batch[d].JWS, make([]byte, 8<<10)...)
			}
			get(s.PutPolicies(b.Context(), "op", batch, nil, t0))(b)
		}
	})
}

// 500 devices' reports in one call.
func BenchmarkPutReports(b *testing.B) {
	eachBench(b, func(b *testing.B, s *store.Store) {
		batch := make([]store.Report, 500)
		for i := 0; b.Loop(); i++ {
			for d := range batch {
				batch[d] = store.Report{Device: fmt.Sprint("d", d), Seen: t0.Add(time.Duration(i) * time.Second), Connections: []store.ConnectionState{{Name: "a-b", Up: true}}}
			}
			ok(b, s.PutReports(b.Context(), batch))
		}
	})
}

// What an instance asks several times a second: is there anything new?
func BenchmarkHeads(b *testing.B) {
	eachBench(b, func(b *testing.B, s *store.Store) {
		for b.Loop() {
			get(s.Heads(b.Context()))(b)
		}
	})
}

// One member of 10,000 changes.
func BenchmarkApply(b *testing.B) {
	eachBench(b, func(b *testing.B, s *store.Store) {
		regs := [2]store.Change{}
		for i := range regs {
			c := members(b, 10_000, "x").Content()
			c.Members[5000].Title = fmt.Sprint(i)
			regs[i] = store.Change{Registry: get(registry.New(c))(b), Who: "op"}
		}
		for i := 0; b.Loop(); i++ {
			c := regs[i%2]
			c.Expected = store.Revision(i)
			get(s.Apply(b.Context(), c, t0))(b)
		}
	})
}

// A device asks for its policy of 8 KiB.
func BenchmarkLatest(b *testing.B) {
	eachBench(b, func(b *testing.B, s *store.Store) {
		p := pol("d", 1, "x")
		p.JWS = append(p.JWS, make([]byte, 8<<10)...)
		get(s.PutPolicies(b.Context(), "op", []store.Policy{p}, nil, t0))(b)
		for b.Loop() {
			get(s.Latest(b.Context(), "d"))(b)
		}
	})
}
