package compile_test

import (
	"fmt"
	"testing"

	"wardgate/sp/compile"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
)

func BenchmarkDevice(b *testing.B) {
	for _, n := range []int{1, 1000} {
		in := input(b, registrytest.Star(n))
		for _, name := range []string{"hub.devices.example", "member-0.devices.example"} {
			b.Run(fmt.Sprintf("%s/of=%d", name[:3], n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := in.Device(name); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	r := newRegistry(b, registrytest.Star(1000))
	b.ReportAllocs()
	for b.Loop() {
		if err := compile.Check(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAffected(b *testing.B) {
	c := registrytest.Star(1000)
	old := newRegistry(b, c)
	c.Contracts[7].Idle = 60e9
	now, err := registry.New(c)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(compile.Affected(old, now)) != 2 {
			b.Fatal("wrong")
		}
	}
}
