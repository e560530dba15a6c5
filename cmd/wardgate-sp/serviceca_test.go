package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp"
)

// The way to a CA of an upstream issuer by the command line, and to the next CA in its own time.
func TestServiceCA(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run(exitOK, "apply", b.path("registry"))
	text := b.run(exitOK, "service", "ca", "group-b", "--csr", b.path("request.pem"))
	if !strings.Contains(text, "group-b/1.new") {
		t.Errorf("request: %s", text)
	}
	if text := b.run(exitOK, "service", "ca", "group-b", "--status"); !strings.Contains(text, "waits") {
		t.Errorf("status: %s", text)
	}
	if text := b.run(exitRefused, "service", "ca", "group-b"); !strings.Contains(text, "upstream issuer was asked") {
		t.Errorf("a CA beside the request: %s", text)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := func(serial int64, name pkix.Name, pathLen int, pub any, parent *x509.Certificate) *x509.Certificate {
		tpl := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: name, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(9000 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
		if parent == nil {
			parent = tpl
		}
		der, err := x509.CreateCertificate(rand.Reader, tpl, parent, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	root := ca(1, pkix.Name{CommonName: "Upstream Root"}, 1, key.Public(), nil)
	request, err := os.ReadFile(b.path("request.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(request)
	csr, err := certs.ParseCSR(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	b.write("root.pem", certs.EncodePEM(root))
	b.write("answer.pem", certs.EncodePEM(ca(2, csr.Subject, 0, csr.PublicKey, root)))
	if text := b.run(exitFailure, "service", "ca", "group-b", "--install", b.path("answer.pem")); !strings.Contains(text, "to one of the 0 anchors") {
		t.Errorf("without the root: %s", text)
	}
	if text := b.run(exitOK, "service", "ca", "group-b", "--install", b.path("answer.pem"), "--anchors", b.path("root.pem")); !strings.Contains(text, "group-b/1 is made") {
		t.Errorf("install: %s", text)
	}

	var list []sp.CAState
	b.run(exitOK, "service", "ca", "group-b", "--why", "the first one ends")
	b.json(&list, "service", "ca", "group-b", "--status")
	if len(list) != 2 || list[0].State != sp.CAPublished || list[1].State != sp.CAIssues || !list[0].From.After(time.Now().Add(71*time.Hour)) {
		t.Errorf("the next one: %+v", list)
	}
	b.run(exitOK, "service", "ca", "group-b", "--now")
	b.json(&list, "service", "ca", "group-b", "--status")
	if len(list) != 3 || list[0].State != sp.CAIssues {
		t.Errorf("at once: %+v", list)
	}
	if text := b.run(exitOK, "service", "ca", "group-b", "--discard"); !strings.Contains(text, "nothing was half done") {
		t.Errorf("discard: %s", text)
	}
	for _, c := range [][]string{
		{"service", "ca", "group-b", "--status", "--discard"},
		{"service", "ca", "group-b", "--anchors", "x"},
		{"service", "ca", "group-b", "--now", "--api", "/nowhere"},
		{"init", b.path("other"), "--device-anchors", b.path("anchors.pem"), "--token", "sp"},
	} {
		b.run(exitUsage, c...)
	}
}
