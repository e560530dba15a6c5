package message_test

import (
	"testing"

	"wardgate/ike/message"
)

func benchMessages(b *testing.B) (init []byte, first message.PayloadType, auth []byte) {
	f := readLive(b, "cert-mlkem")
	for _, m := range f.Msgs {
		if m.Exchange == "IKE_SA_INIT" && init == nil {
			init = m.Message
		}
		if m.Exchange == "IKE_AUTH" && auth == nil {
			first, auth = message.PayloadType(*m.First), m.Plain
		}
	}
	return init, first, auth
}

func BenchmarkParseInit(b *testing.B) {
	init, _, _ := benchMessages(b)
	b.SetBytes(int64(len(init)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := message.Parse(init); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseAuth(b *testing.B) {
	_, first, auth := benchMessages(b)
	b.SetBytes(int64(len(auth)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := message.ParsePayloads(first, auth); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeAuth(b *testing.B) {
	_, first, auth := benchMessages(b)
	ps, err := message.ParsePayloads(first, auth)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, len(auth))
	b.SetBytes(int64(len(auth)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := message.AppendPayloads(buf, ps); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealFragments(b *testing.B) {
	_, first, auth := benchMessages(b)
	in := message.Inner{First: first, Plain: auth}
	b.SetBytes(int64(len(auth)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := in.Seal(message.Header{}, plainProtector{}, 548); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	_, first, auth := benchMessages(b)
	ps, err := message.ParsePayloads(first, auth)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := message.FormIKEAuthFirstRequest.Check(ps); err != nil {
			b.Fatal(err)
		}
	}
}
