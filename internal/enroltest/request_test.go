package enroltest

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/est"
)

// dial makes a TLS connection with a client certificate (nil: none).
func (w *world) dial(by *tls.Certificate) *tls.Conn {
	w.Helper()
	w.mu.Lock()
	addr := w.addr
	w.mu.Unlock()
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", MinVersion: tls.VersionTLS13, Time: w.Now, NextProtos: []string{"http/1.1"}}
	for _, c := range w.web {
		cfg.RootCAs.AddCert(c)
	}
	if by != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return by, nil }
	}
	c := must((&tls.Dialer{Config: cfg}).DialContext(w.context(), "tcp", addr))(w).(*tls.Conn)
	w.Cleanup(func() { _ = c.Close() })
	return c
}

// binding is a connection's tls-exporter.
func (w *world) binding(c *tls.Conn) string {
	w.Helper()
	cs := c.ConnectionState()
	return must(est.Binding(&cs))(w)
}

// send writes octets to a connection as they are, and reads the answer.
func (w *world) send(c *tls.Conn, head string, body []byte) *reply {
	w.Helper()
	must(c.Write(append([]byte(head), body...)))(w)
	res := must(http.ReadResponse(bufio.NewReader(c), nil))(w)
	defer res.Body.Close()
	return &reply{res.StatusCode, res.Header, must(io.ReadAll(res.Body))(w)}
}

func post(service, op string, n int) string {
	return fmt.Sprintf("POST /.well-known/est/%s/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\nContent-Length: %d\r\n\r\n", service, op, n)
}

// forger asks for a certificate as a device does, and does one thing differently.
type forger struct {
	*device
	by          *tls.Certificate // of the connection; nil: the device certificate
	service, op string           // empty: group-a, simpleenroll
	conn        *tls.Conn
	key         crypto.Signer
	csr         certs.CSR
}

func (w *world) newKey() *ecdsa.PrivateKey {
	w.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(w)
}

// proof is the device key's proof, made at a time.
func (d *device) proof(at time.Time) []byte {
	d.w.Helper()
	return must(certs.NewRelatedCertRequest(rand.Reader, d.cert, d.key, at))(d.w)
}

// body is the request as it is sent.
func (f *forger) body() []byte {
	f.w.Helper()
	return []byte(base64.StdEncoding.EncodeToString(must(f.csr.Create(rand.Reader, f.key))(f.w)))
}

// connect makes the connection and a request that is right.
func (f *forger) connect() {
	f.w.Helper()
	if f.by == nil {
		f.by = f.tls()
	}
	if f.service == "" {
		f.service = "group-a"
	}
	if f.op == "" {
		f.op = "simpleenroll"
	}
	f.conn, f.key = f.w.dial(f.by), f.w.newKey()
	f.csr = certs.CSR{Challenge: f.w.binding(f.conn), Related: f.proof(f.w.Now())}
	if f.op == "simplereenroll" {
		f.csr.RawSubject, f.csr.DNSNames = f.by.Leaf.RawSubject, f.by.Leaf.DNSNames
	}
}

// ask connects, lets edit change the request, and sends it.
func (f *forger) ask(edit func()) *reply {
	f.w.Helper()
	f.connect()
	if edit != nil {
		edit()
	}
	b := f.body()
	return f.w.send(f.conn, post(f.service, f.op, len(b)), b)
}

// refused checks that the centre has said no with a class of refusal, and that the refusal stands on its
// record with a code and with who it was (a part of the name).
func (w *world) refused(r *reply, class est.Class, who string) {
	w.Helper()
	if r.status != class.Status() || !strings.Contains(string(r.body), "("+class.String()+")") || !bytes.Contains(r.body, []byte("expected ")) {
		w.Errorf("got %d %s, want %d %s and what was expected", r.status, r.body, class.Status(), class)
	}
	w.onRecord("enrolment-refused", class.Code(), who)
}

// onRecord waits until a refusal stands on the centre's record.
func (w *world) onRecord(event, code, who string) {
	w.Helper()
	w.eventually(event+" "+code+" by "+who+" on the record", 0, func() bool {
		for _, e := range w.recorded(event, code) {
			if strings.Contains(e.Who, who) && e.Result == "refused" && e.Where != "" && e.Detail["expected"] != "" && e.Detail["came"] != "" {
				return true
			}
		}
		return false
	})
}
