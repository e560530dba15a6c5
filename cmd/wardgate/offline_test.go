package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/audit"
	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
	"wardgate/router/control"
	"wardgate/router/control/controltest"
)

// nobody is a daemon that must not be asked.
func nobody(t *testing.T) func(string) (daemon, error) {
	return func(string) (daemon, error) {
		t.Error("the daemon was asked")
		return nil, errors.New("asked")
	}
}

func runOffline(t *testing.T, now time.Time, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	c := &cli{in: strings.NewReader(""), out: &out, err: &errs, now: func() time.Time { return now }, dial: nobody(t), getenv: func(string) string { return "" }}
	exit := c.run(args)
	return result{out.String(), errs.String(), exit}
}

func write(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestPolicyCheckOffline(t *testing.T) {
	t.Parallel()
	now, dir := controltest.Now, t.TempDir()
	lab := must(labca.NewLab("", labca.P256, now.Add(-48*time.Hour), "group-a"))(t)
	issue := func(a *labca.Authority, name string) *x509.Certificate {
		key := must(labca.NewKey(labca.P256))(t)
		return must(a.Issue(labca.Request{Public: key.Public(), DNSNames: []string{name}, At: now.Add(-24 * time.Hour)}))(t)
	}
	signer := must(labca.NewKey(labca.P256))(t)
	leaf := must(lab.Policy.Issue(labca.Request{Public: signer.Public(), DNSNames: []string{"signer.policy.example"}, At: now.Add(-24 * time.Hour)}))(t)
	chain := append([]*x509.Certificate{leaf}, lab.Policy.Intermediates()...)
	device, other := issue(lab.Device, "a.devices.example"), issue(lab.Device, "x.devices.example")
	sum := sha256.Sum256(device.Raw)
	doc := &policy.Document{
		Format: policy.Format, Issuer: "sp.example", Serial: 7,
		Device:    policy.Device{ID: "a.devices.example", Fingerprint: "sha256:" + hex.EncodeToString(sum[:])},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(30 * 24 * time.Hour),
		Suites:        policy.Suites{IKE: []string{"aes256gcm16-prfsha384-x25519"}, ESP: []string{"aes256gcm16"}},
		DeviceAnchors: []string{string(certs.EncodePEM(lab.Device.Anchor()))},
		Zones:         []policy.Zone{{Name: "sz", Level: policy.LevelSZ, Prefixes: []string{"10.1.2.0/24"}, Interfaces: []string{"lan0"}}},
		Services:      []policy.Service{{Name: "group-a", Category: policy.CategoryInformation, Anchors: []string{string(certs.EncodePEM(lab.Services["group-a"].Anchor()))}}},
		Peers:         []policy.Peer{{Name: "clinic-b", Gateways: []string{"203.0.113.2"}, DeviceID: "b.devices.example"}},
		Connections: []policy.Connection{{
			Name: "a-b", Peer: "clinic-b", Service: "group-a", ServiceID: "b.group-a.example", Start: policy.StartOnDemand,
			Flows: []policy.FlowRule{{Name: "dicom", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.10"}, Protocol: "tcp", Ports: []string{"104"}, Direction: policy.DirectionIn}},
		}},
		Tests: []policy.Test{{Name: "dicom", From: "10.2.1.9", To: "10.1.2.10", Protocol: "tcp", Port: 104, Expect: policy.ExpectAllow}},
	}
	jws := must(policy.Sign(doc, signer, chain))(t)
	file := write(t, dir, "policy.jws", jws)
	broken := write(t, dir, "broken.jws", append(jws[:len(jws)-8:len(jws)-8], "AAAAAAAA"...))
	noPolicy := write(t, dir, "nothing.jws", []byte("no policy"))
	empty := write(t, dir, "empty.jws", nil)
	anchors := write(t, dir, "policy-ca.pem", certs.EncodePEM(lab.Policy.Anchor()))
	wrongAnchors := write(t, dir, "device-ca.pem", certs.EncodePEM(lab.Device.Anchor()))
	devicePEM := write(t, dir, "device.pem", certs.EncodePEM(device))
	deviceDER := write(t, dir, "device.der", device.Raw)
	otherPEM := write(t, dir, "other.pem", certs.EncodePEM(other))
	crls := write(t, dir, "crls.pem", encodeCRLs(t, lab.Policy, now))

	for _, c := range []struct {
		name string
		now  time.Time
		args []string
		exit int
		says []string
	}{
		{"good", now, []string{file, "--anchors", anchors, "--device-cert", devicePEM}, exitOK, []string{"serial 7 of sp.example for a.devices.example is in order", "1 connection with 1 flow; its 1 test passes", "Nothing was installed", "serial-not-compared"}},
		{"good, DER, CRLs", now, []string{file, "--anchors", anchors, "--device-cert", deviceDER, "--crls", crls}, exitOK, []string{"is in order"}},
		{"changed", now, []string{broken, "--anchors", anchors, "--device-cert", devicePEM}, exitRefused, []string{"(policy-signature)"}},
		{"not a policy", now, []string{noPolicy, "--anchors", anchors, "--device-cert", devicePEM}, exitRefused, []string{"(policy-format)"}},
		{"empty", now, []string{empty, "--anchors", anchors, "--device-cert", devicePEM}, exitRefused, []string{"(policy-format)"}},
		{"another authority", now, []string{file, "--anchors", wrongAnchors, "--device-cert", devicePEM}, exitRefused, []string{"(policy-signer-untrusted)"}},
		{"another device", now, []string{file, "--anchors", anchors, "--device-cert", otherPEM}, exitRefused, []string{"(policy-other-device)", "hint: install the file that the service provider made for this device"}},
		{"expired", now.Add(31 * 24 * time.Hour), []string{file, "--anchors", anchors, "--device-cert", devicePEM}, exitRefused, []string{"(policy-expired)", "hint: check this device's clock"}},
		{"no file", now, []string{file + "x", "--anchors", anchors, "--device-cert", devicePEM}, exitFailure, []string{"cannot read", "hint: check the name"}},
		{"no anchors file", now, []string{file, "--anchors", anchors + "x", "--device-cert", devicePEM}, exitFailure, []string{"cannot read"}},
		{"anchors that are none", now, []string{file, "--anchors", noPolicy, "--device-cert", devicePEM}, exitFailure, []string{"cannot be used", "nothing.jws"}},
		{"lists that are none", now, []string{file, "--anchors", anchors, "--crls", anchors, "--device-cert", devicePEM}, exitFailure, []string{"cannot be used", "X509 CRL"}},
		{"no device", now, []string{file, "--anchors", anchors}, exitUsage, []string{"--device-cert"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := runOffline(t, c.now, append([]string{"policy", "check", "--offline"}, c.args...)...)
			if r.exit != c.exit {
				t.Errorf("exit %d, want %d", r.exit, c.exit)
			}
			for _, s := range c.says {
				if !strings.Contains(r.out+r.err, s) {
					t.Errorf("want %q, got\n%s%s", s, r.out, r.err)
				}
			}
			if r.exit != exitOK && strings.Count(r.err, "\nhint: ") != 1 {
				t.Errorf("want one hint, got\n%s", r.err)
			}
			var rep control.PolicyReport
			if r := runOffline(t, c.now, append([]string{"policy", "check", "--offline", "--json"}, c.args...)...); c.exit == exitOK {
				if err := json.Unmarshal([]byte(r.out), &rep); err != nil || rep.Serial != 7 || rep.Flows != 1 || rep.Installed {
					t.Errorf("%v: %s", err, r.out)
				}
			}
		})
	}
}

func encodeCRLs(t *testing.T, a *labca.Authority, now time.Time) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, l := range must(a.CRLs(now.Add(-time.Hour), 48*time.Hour))(t) {
		if err := pem.Encode(&b, &pem.Block{Type: "X509 CRL", Bytes: l.Raw}); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestAuditOffline(t *testing.T) {
	t.Parallel()
	now, dir := controltest.Now, t.TempDir()
	file := filepath.Join(dir, "audit.log")
	log := must(audit.Open(file, audit.Options{Now: func() time.Time { return now }}))(t)
	for _, r := range []audit.Record{
		{Event: audit.EventStarted, Result: audit.ResultInfo},
		{Event: audit.EventAuthRefused, Who: evil, What: "a-b", Where: "203.0.113.9:500", Result: audit.ResultRefused, Detail: map[string]string{"code": "cert-not-bound"}},
		{Event: audit.EventConnectionUp, Who: "b.devices.example + b.group-a.example", What: "a-b", Where: "203.0.113.2:4500", Result: audit.ResultOK},
	} {
		r.Time = now
		if err := log.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}

	r := runOffline(t, now, "audit", "tail", "--file", file, "-n", "2")
	checkClean(t, "tail", r.out)
	if lines := strings.Split(strings.TrimSpace(r.out), "\n"); r.exit != exitOK || len(lines) != 2 || !strings.Contains(lines[1], "connection-up") {
		t.Errorf("tail: exit %d\n%s%s", r.exit, r.out, r.err)
	}
	var recs []audit.Record
	r = runOffline(t, now, "audit", "tail", "--file", file, "--json")
	if err := json.Unmarshal([]byte(r.out), &recs); err != nil || len(recs) != 3 || recs[2].Hash == "" {
		t.Errorf("tail --json: %v\n%s", err, r.out)
	}
	r = runOffline(t, now, "audit", "verify", file)
	if r.exit != exitOK || !strings.Contains(r.out, "Whole: 3 records, 1 to 3, in 1 file.") || !strings.Contains(r.out, recs[2].Hash) {
		t.Errorf("verify: exit %d\n%s%s", r.exit, r.out, r.err)
	}

	text := must(os.ReadFile(file))(t)
	changed := write(t, dir, "changed.log", bytes.Replace(text, []byte("203.0.113.9"), []byte("203.0.113.8"), 1))
	r = runOffline(t, now, "audit", "verify", changed)
	if r.exit != exitFailure || !strings.Contains(r.out, "NOT WHOLE") || !strings.Contains(r.out, "line 2") || r.err != "" {
		t.Errorf("verify of a changed record: exit %d\n%s%s", r.exit, r.out, r.err)
	}
	var rep audit.Report
	r = runOffline(t, now, "audit", "verify", changed, "--json")
	if err := json.Unmarshal([]byte(r.out), &rep); err != nil || rep.Break == nil || rep.Break.Line != 2 || r.exit != exitFailure {
		t.Errorf("verify --json of a changed record: exit %d, %v\n%s", r.exit, err, r.out)
	}
	half := write(t, dir, "half.log", text[:len(text)-20])
	if r = runOffline(t, now, "audit", "verify", half); r.exit != exitOK || !strings.Contains(r.out, "half written") {
		t.Errorf("verify of a half-written record: exit %d\n%s", r.exit, r.out)
	}
	empty := write(t, dir, "empty.log", nil)
	if r = runOffline(t, now, "audit", "verify", empty); r.exit != exitOK || !strings.Contains(r.out, "empty") {
		t.Errorf("verify of an empty record: exit %d\n%s", r.exit, r.out)
	}
	if r = runOffline(t, now, "audit", "tail", "--file", empty); r.exit != exitOK || r.out != "The record is empty.\n" {
		t.Errorf("tail of an empty record: exit %d\n%s", r.exit, r.out)
	}
	foreign := write(t, dir, "foreign.log", []byte(evil+"\n"+evil+"\n"))
	for _, args := range [][]string{{"audit", "tail", "--file", foreign}, {"audit", "verify", foreign}, {"audit", "verify", file + "x"}, {"audit", "tail", "--file", file + "x"}} {
		r = runOffline(t, now, args...)
		checkClean(t, strings.Join(args[:2], " "), r.out+r.err)
		if r.exit != exitFailure {
			t.Errorf("%v: exit %d\n%s%s", args, r.exit, r.out, r.err)
		}
	}
}
