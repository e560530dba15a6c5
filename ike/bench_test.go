package ike_test

import (
	"testing"
	"time"
)

// BenchmarkDoubleAuthentication is one connection with two rounds and ECDSA P-256 chains, both
// ends together, until it is deleted again.
func BenchmarkDoubleAuthentication(b *testing.B) {
	p := newPair(b, pairOptions{})
	for b.Loop() {
		p.up()
		p.a.Endpoint.Terminate("a-b", "again")
		p.w.For(time.Second)
		p.w.Forget()
	}
	p.empty()
}

// BenchmarkPSK is the same with one round and a PSK.
func BenchmarkPSK(b *testing.B) {
	p := newPair(b, pairOptions{both: psk})
	for b.Loop() {
		p.up()
		p.a.Endpoint.Terminate("a-b", "again")
		p.w.For(time.Second)
		p.w.Forget()
	}
	p.empty()
}
