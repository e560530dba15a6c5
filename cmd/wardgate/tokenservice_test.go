package main

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/router/control"
	"wardgate/router/control/controltest"
)

// serve runs a fake daemon at a socket that the commands find.
func (b *tokenBench) serve(fake *controltest.Fake) (stop func()) {
	b.t.Helper()
	socket := b.path("control.sock")
	b.t.Setenv(socketVariable, socket)
	server, err := control.Listen(control.ServerOptions{Socket: socket, Backend: fake})
	if err != nil {
		b.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	return func() {
		b.t.Helper()
		if err := errors.Join(server.Shutdown(context.WithoutCancel(b.t.Context())), <-served); err != nil {
			b.t.Error(err)
		}
	}
}

// issue answers a request as a CA does.
func (b *tokenBench) issue(lab *labca.Lab, csr string, from *labca.Authority) string {
	b.t.Helper()
	text, err := os.ReadFile(b.path(csr))
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := from.IssueFromCSR(labca.FromCSR{
		CSR: text, At: time.Now().Add(-time.Minute),
		DeviceAnchors: []*x509.Certificate{lab.Device.Anchor()}, DeviceCA: lab.Device.Intermediates(),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return b.write(csr+".pem", string(certs.EncodePEM(append([]*x509.Certificate{c}, from.Intermediates()...)...)))
}

// Layer 2 is listed, replaced and deleted beside a daemon, which is told.
func TestTokenService(t *testing.T) {
	b := newTokenBench(t)
	// The fake's connections are of the service "group-a".
	lab, err := labca.NewLab("", labca.P256, time.Now().Add(-time.Hour), "group-a", "group-b")
	if err != nil {
		t.Fatal(err)
	}
	devCA := b.write("device-ca.pem", string(certs.EncodePEM(lab.Device.Anchor())))
	svcCA := b.write("group-a-ca.pem", string(certs.EncodePEM(lab.Services["group-a"].Anchor())))
	b.t.Setenv(socketVariable, b.path("none.sock"))
	b.run(exitOK, "init", "--new-so-pin-file", b.path("so-pin"), "--new-pin-file", b.path("pin"))
	b.run(exitOK, "csr", "--device", "--name", "a.devices.example", "--out", b.path("device.csr"))
	b.run(exitOK, "import", "--device", "--ca", devCA, b.issue(lab, "device.csr", lab.Device))
	b.has(b.run(exitOK, "service", "list"), "nothing for any service")
	b.has(b.run(exitToken, "service", "replace", "group-a"), "has nothing for the service")
	b.has(b.run(exitToken, "service", "delete", "group-a", "--yes"), "has nothing for the service")
	b.run(exitOK, "csr", "--service", "group-a", "--name", "a.group-a.example", "--key-type", "p384", "--out", b.path("1.csr"))
	b.has(b.run(exitOK, "import", "--service", "group-a", "--ca", svcCA, b.issue(lab, "1.csr", lab.Services["group-a"])), "is on the token")

	fake := &controltest.Fake{}
	stop := b.serve(fake)
	type listed struct{ Services []tokenEntry }
	list := func() []tokenEntry {
		t.Helper()
		var l listed
		b.json(exitOK, &l, "service", "list")
		return l.Services
	}
	first := list()
	if len(first) != 1 || first[0].State != "ok" || !first[0].Bound || first[0].Key != "ECDSA P-384" || first[0].Service != "group-a" || first[0].NotAfter == nil {
		t.Fatalf("%+v", first)
	}
	b.has(b.run(exitOK, "service", "list"), "service group-a", "BOUND", "yes", "ECDSA P-384")

	// Replacement: name and kind of key are the present ones; the present key serves until the end.
	b.has(b.run(exitOK, "service", "replace", "group-a", "--out", b.path("2.csr")), "a.group-a.example", "ECDSA P-384",
		"wardgate token service replace group-a --certificate")
	if l := list(); len(l) != 2 || !slices.ContainsFunc(l, func(e tokenEntry) bool { return e.ID == first[0].ID && e.State == "ok" }) ||
		!slices.ContainsFunc(l, func(e tokenEntry) bool { return e.ID != first[0].ID && e.State == "waiting" && e.Key == "ECDSA P-384" }) {
		t.Errorf("while it is being replaced: %+v", l)
	}
	b.has(b.run(exitOK, "service", "replace", "group-a", "--key-type", "p256", "--out", b.path("3.csr")), "ECDSA P-256", "earlier request", "void")
	b.has(b.run(exitUsage, "service", "replace", "group-a", "--ca", svcCA), "--certificate")
	b.has(b.run(exitUsage, "service", "replace", "group-a", "--certificate", svcCA), "--ca")
	b.has(b.run(exitRefused, "service", "replace", "group-a", "--certificate", b.issue(lab, "2.csr", lab.Services["group-a"]), "--ca", svcCA), "another key")
	if calls := fake.Calls(); len(calls) != 0 {
		t.Errorf("the daemon was told of nothing: %v", calls)
	}
	third := b.issue(lab, "3.csr", lab.Services["group-a"])
	b.has(b.run(exitOK, "service", "replace", "group-a", "--certificate", third, "--ca", svcCA), "is on the token", "The daemon has read the token again")
	if l := list(); len(l) != 1 || l[0].ID == first[0].ID || l[0].State != "ok" || l[0].Key != "ECDSA P-256" {
		t.Errorf("after it was replaced: %+v", l)
	}
	if calls := fake.Calls(); !slices.Equal(calls, []string{"reload"}) {
		t.Errorf("the daemon was asked %v", calls)
	}

	// Deletion has to be confirmed, and says what depends on it.
	b.has(b.run(exitRefused, "service", "delete", "group-a"), "confirmed", "--yes", "a-b")
	if l := list(); len(l) != 1 {
		t.Errorf("deleted without a word: %+v", l)
	}
	var deleted struct {
		Deleted, Daemon string
		Connections     []string
	}
	b.json(exitOK, &deleted, "service", "delete", "group-a", "--yes")
	if deleted.Deleted != "group-a" || deleted.Daemon != daemonReloaded || !slices.Contains(deleted.Connections, "a-b") {
		t.Errorf("%+v", deleted)
	}
	if l := list(); len(l) != 0 {
		t.Errorf("%+v", l)
	}

	// A daemon that refuses: the token has changed all the same, and the answer says so.
	fake.Err = &control.Error{Kind: control.KindInternal, Code: "x", Title: "No"}
	b.run(exitOK, "csr", "--service", "group-a", "--name", "a.group-a.example", "--out", b.path("4.csr"))
	b.has(b.run(exitOK, "service", "delete", "group-a", "--yes"), "could not be told", "systemctl reload wardgated", "cannot be asked")
	stop()
	b.run(exitOK, "csr", "--service", "group-a", "--name", "a.group-a.example", "--out", b.path("5.csr"))
	b.json(exitOK, &deleted, "service", "delete", "group-a", "--yes")
	if deleted.Daemon != daemonNotRunning {
		t.Errorf("%+v", deleted)
	}
}
