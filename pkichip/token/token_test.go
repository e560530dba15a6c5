package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
	"pgregory.net/rapid"

	"wardgate/pkichip/chipproto"
)

// Every return value has its name, a text and a remedy, and wrap uses them.
func TestTableOfReturnValues(t *testing.T) {
	for rv, x := range table {
		if x.text == "" || x.do == "" || x.code == chipproto.OK || x.code == chipproto.CodeInternal {
			t.Errorf("0x%X: incomplete: %+v", uint(rv), x)
		}
		// The binding knows the names of the standard.
		if got := rv.Error(); !strings.HasSuffix(got, ": "+x.name) && rv != pkcs11.CKR_CURVE_NOT_SUPPORTED { // a name it lacks
			t.Errorf("0x%X is called %s, the binding says %s", uint(rv), x.name, got)
		}
		e := wrap("", in("C_Something", rv))
		if e.Code != x.code || e.RV != uint64(rv) || e.Op != "C_Something" || e.Tries != -1 ||
			!strings.Contains(e.Error(), x.name) || !strings.Contains(e.Error(), x.do) || !strings.Contains(e.Error(), "C_Something") {
			t.Errorf("0x%X: %+v", uint(rv), e)
		}
	}
	if e := wrap("C_Sign", pkcs11.Error(0x80001234)); e.Code != chipproto.CodeToken || !strings.Contains(e.Text, "0x80001234") || e.Do == "" {
		t.Errorf("vendor's own: %+v", e)
	}
	if e := wrap("x", io.EOF); e.Code != chipproto.CodeInternal {
		t.Errorf("no CKR: %+v", e)
	}
}

func TestLabels(t *testing.T) {
	for _, s := range []string{"a", "group-a", "x.y_z", strings.Repeat("n", 48)} {
		l, name, ok := parseLabel(label(chipproto.LayerService, s))
		if !ok || l != chipproto.LayerService || name != s {
			t.Errorf("%q: %v %q %v", s, l, name, ok)
		}
	}
	if l, _, ok := parseLabel(label(chipproto.LayerDevice, "")); !ok || l != chipproto.LayerDevice {
		t.Error("device")
	}
	for _, s := range []string{"", "wardgate-service:", "wardgate-service:a/b", "wardgate-device2", "other", "wardgate-chain:device"} {
		if _, _, ok := parseLabel(s); ok {
			t.Errorf("%q is ours", s)
		}
	}
	if checkPlace(chipproto.LayerDevice, "x") == nil || checkPlace(0, "") == nil || checkPlace(4, "x") == nil || checkPlace(chipproto.LayerService, "") == nil {
		t.Error("a place that does not exist was accepted")
	}
}

func TestECDSADER(t *testing.T) {
	for _, n := range []int{0, 1, 63, 134} {
		if _, err := ecdsaDER(make([]byte, n)); err == nil {
			t.Errorf("a signature of %d octets was accepted", n)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.SampledFrom([]int{32, 48, 66}).Draw(rt, "n")
		raw := rapid.SliceOfN(rapid.Byte(), 2*n, 2*n).Draw(rt, "raw")
		der, err := ecdsaDER(raw)
		if err != nil {
			rt.Fatal(err)
		}
		var got struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(der, &got); err != nil || len(rest) != 0 ||
			got.R.Cmp(new(big.Int).SetBytes(raw[:n])) != 0 || got.S.Cmp(new(big.Int).SetBytes(raw[n:])) != 0 {
			rt.Fatalf("%x: %v", der, err)
		}
	})
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(nil)
	r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 64)
	r.FillBytes(raw[:32])
	s.FillBytes(raw[32:])
	if der, err := ecdsaDER(raw); err != nil || !ecdsa.VerifyASN1(&k.PublicKey, sum[:], der) {
		t.Errorf("does not verify: %v", err)
	}
}

func TestPINFlags(t *testing.T) {
	for _, x := range []struct {
		flags uint
		state chipproto.PINState
		tries int8
	}{
		{0, chipproto.PINGood, -1},
		{pkcs11.CKF_USER_PIN_COUNT_LOW, chipproto.PINLow, -1},
		{pkcs11.CKF_USER_PIN_COUNT_LOW | pkcs11.CKF_USER_PIN_FINAL_TRY, chipproto.PINFinalTry, 1},
		{pkcs11.CKF_USER_PIN_LOCKED | pkcs11.CKF_USER_PIN_FINAL_TRY, chipproto.PINLocked, 0},
		{pkcs11.CKF_SO_PIN_COUNT_LOW | pkcs11.CKF_SO_PIN_LOCKED, chipproto.PINGood, -1},
	} {
		s := pinState(x.flags)
		if s != x.state || triesLeft(s) != x.tries || triesText(s) == "" {
			t.Errorf("flags %#x: %v, %d tries", x.flags, s, triesLeft(s))
		}
	}
}

func TestPINIsNotPrintedAndIsWiped(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(file, []byte("482910\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &PIN{File: file}
	if err := p.with(func(pin string) error {
		if pin != "482910" {
			t.Errorf("PIN of %d octets", len(pin))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.Keep(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(f, p.kept); strings.Contains(s, "482910") || strings.Contains(s, "52, 56") {
			t.Errorf("%s prints the PIN: %s", f, s)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if m, err := p.mark(); err != nil || !strings.HasPrefix(m, "file:") || strings.Contains(m, "482910") {
		t.Errorf("mark %q, %v", m, err)
	}
	s, err := newSecret()
	if err != nil {
		t.Fatal(err)
	}
	s.n = copy(s.page, "123")
	s.wipe()
	s.wipe() // twice does no harm
	if s.page != nil || s.n != 0 {
		t.Error("not wiped")
	}
}

func TestPINPipe(t *testing.T) {
	p := &PIN{}
	if err := p.ReadPipe(strings.NewReader("\x0412345678"[:5] + "\x0287")); err != nil {
		t.Fatal(err)
	}
	got := ""
	if err := p.with(func(s string) error { got = s; return nil }); err != nil || got != "1234" || p.officer.n != 2 || !p.attended() {
		t.Errorf("PINs: %q, %v", got, err)
	}
	for _, bad := range []string{"", "\x04", "\x04123", "\x041234", "\x041234\x02", "\x041234\x028"} {
		if err := (&PIN{}).ReadPipe(strings.NewReader(bad)); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	p = &PIN{}
	if err := p.ReadPipe(strings.NewReader("\x00\x00")); err != nil || !p.none() {
		t.Errorf("no PINs: %v", err)
	}
}

// The server ends the conversation when the client breaks the protocol, and answers nothing that
// is no request. It is tested here without a module; with one in package pkichip.
func TestServerRefusesNonsense(t *testing.T) {
	for name, m := range map[string]*chipproto.Message{
		"event": {Type: chipproto.TypeEvent, Event: chipproto.EventRemoved, Text: "x", Tries: -1},
		"reply": {Type: chipproto.TypePing | chipproto.ReplyBit, ID: 1, Tries: -1},
	} {
		ours, theirs := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- NewServer(theirs).Serve(nil) }()
		if err := chipproto.Write(ours, m); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Errorf("%s from the client was accepted", name)
		}
		ours.Close()
		theirs.Close()
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	done := make(chan error, 1)
	go func() { done <- NewServer(theirs).Serve(nil) }()
	if err := chipproto.Write(ours, &chipproto.Message{Type: chipproto.TypePing, ID: 9, Tries: -1}); err != nil {
		t.Fatal(err)
	}
	if m, err := chipproto.Read(ours); err != nil || m.ID != 9 || m.Type != chipproto.TypePing|chipproto.ReplyBit {
		t.Fatalf("ping: %+v, %v", m, err)
	}
	if _, err := ours.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("a frame of 4 GB was accepted")
	}
}

func TestModuleThatCannotBeLoaded(t *testing.T) {
	_, err := Open(Config{Module: filepath.Join(t.TempDir(), "none.so")})
	if err == nil || !strings.Contains(err.Error(), "cannot be loaded") {
		t.Error(err)
	}
}
