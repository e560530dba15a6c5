package sp_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/sp"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store/storetest"
)

// A connection on which a certificate was accepted does not keep it good: a revocation list that names it,
// its end, and what the registry says count for the next request on the same connection.
func TestVerdictsAreFresh(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		happens func(*world, *instance, *labca.Authority)
		code    string
	}{
		"revoked by the device CA": {func(w *world, i *instance, ca *labca.Authority) {
			if err := ca.Revoke(w.devices[devA].cert.SerialNumber, w.Now(), 1); err != nil {
				t.Fatal(err)
			}
			writeLists(w, ca)
			w.pass(time.Minute)
			// The lists are read again when the registry changes, at the latest after a minute.
			w.content.Members[0].Title = "renamed"
			i.apply()
			i.settled()
		}, "cert-revoked"},
		"expired": {func(w *world, _ *instance, _ *labca.Authority) { w.pass(48 * time.Hour) }, "cert-expired"},
		"another certificate is registered": {func(w *world, i *instance, ca *labca.Authority) {
			k := slices.IndexFunc(w.content.Devices, func(d registry.Device) bool { return d.Name == devA })
			w.content.Devices[k].Certificate = string(certs.EncodePEM(newDevice(t, ca, devA).cert))
			i.apply()
		}, "not-registered"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storetest.SQLite(t))
			ca := must(labca.New(labca.Options{Kind: labca.Device, Name: "maker", Domain: "devices.example", At: registrytest.At.Add(-2 * time.Hour)}))(t)
			for k := range w.content.Devices {
				d := newDevice(t, ca, w.content.Devices[k].Name)
				d.cert = must(ca.Issue(labca.Request{Public: d.key.Public(), DNSNames: []string{d.name}, At: registrytest.At.Add(-time.Hour), Life: 25 * time.Hour}))(t)
				d.tls.Certificate = append([][]byte{d.cert.Raw}, labca.DER(ca.Intermediates())...)
				w.devices[d.name] = d
				w.content.Devices[k].Certificate = string(certs.EncodePEM(d.cert))
			}
			a := w.devices[devA]
			dir := filepath.Dir(w.configFile)
			for name, list := range map[string][]*x509.Certificate{"device-anchors.pem": {ca.Anchor()}, "device-cas.pem": ca.Intermediates()} {
				if err := os.WriteFile(filepath.Join(dir, name), certs.EncodePEM(list...), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			w.cfg.Devices.CRLs = []string{filepath.Join(dir, "device-crls.pem")}
			w.cfg.Policy.Life = sp.Duration(200 * time.Hour)
			writeLists(w, ca)
			i := w.start()
			i.apply()
			i.settled()

			connections := 0
			client := w.client(&a.tls)
			dial := client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate
			client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = countCalls(dial, &connections)
			poll := func() *reply {
				r := must(http.NewRequestWithContext(w.context(), http.MethodGet, "https://"+i.addr+"/v1/policy", nil))(t)
				res := must(client.Do(r))(t)
				defer res.Body.Close()
				return &reply{res.StatusCode, res.Header, must(io.ReadAll(res.Body))(t)}
			}
			for range 3 {
				if r := poll(); r.status != http.StatusOK {
					t.Fatalf("before: %d %.200s", r.status, r.body)
				}
			}
			c.happens(w, i, ca)
			if r := poll(); r.status != http.StatusForbidden || r.problem(t) != c.code {
				t.Errorf("after: %d %.200s, want %s", r.status, r.body, c.code)
			}
			if connections != 1 {
				t.Errorf("%d connections, want all requests on one", connections)
			}
		})
	}
}

// writeLists writes the device CA's lists to the file that the centre reads.
func writeLists(w *world, ca *labca.Authority) {
	w.Helper()
	lists := must(ca.CRLs(w.Now(), 1000*time.Hour))(w)
	if err := os.WriteFile(w.cfg.Devices.CRLs[0], labca.EncodeCRLs(lists), 0o600); err != nil {
		w.Fatal(err)
	}
}

// countCalls counts how often a certificate is asked for: once a connection.
func countCalls(f func(*tls.CertificateRequestInfo) (*tls.Certificate, error), n *int) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		*n++
		return f(i)
	}
}

// A session is not resumed: every connection shows the device's key anew.
func TestNoSessionIsResumed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	i := w.start()
	i.apply()
	cfg := &tls.Config{
		RootCAs: w.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, Time: w.Now,
		Certificates: []tls.Certificate{w.devices[devA].tls}, ClientSessionCache: tls.NewLRUClientSessionCache(10),
	}
	for range 3 {
		c := must((&tls.Dialer{Config: cfg}).DialContext(w.context(), "tcp", i.addr))(t).(*tls.Conn)
		if _, err := io.WriteString(c, "GET /v1/policy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if got := must(io.ReadAll(c))(t); len(got) == 0 { // reading takes up a ticket, where there is one
			t.Error("no answer")
		}
		if c.ConnectionState().DidResume {
			t.Error("the session was resumed")
		}
		c.Close()
	}
}
