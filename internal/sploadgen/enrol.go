package sploadgen

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/internal/certs"
)

// Enrol has devices enrol for all services that they joined, as routers do: a TLS connection for each
// request, which carries its channel binding (RFC 9266) and the proof of the device key (RFC 9763). So many
// are under way at the same time. It returns how many certificates were issued.
func Enrol(ctx context.Context, opt Options, s *Scenario, names []string, atOnce int) (int, error) {
	type task struct{ device, service string }
	work := make(chan task)
	var done atomic.Int64
	var mu sync.Mutex
	var first error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for t := range work {
				k := s.keys[t.device]
				err := enrol(ctx, opt, tlsConfig(opt, k, s.CA.Intermediates()), k, t.service)
				if err == nil {
					done.Add(1)
					continue
				}
				mu.Lock()
				if first == nil {
					first = fmt.Errorf("enrolment of %s for %s: %w", t.device, t.service, err)
				}
				mu.Unlock()
				cancel()
			}
		})
	}
	for _, d := range names {
		for _, v := range s.joined[d] {
			select {
			case work <- task{d, v}:
			case <-ctx.Done():
			}
		}
	}
	close(work)
	wg.Wait()
	return int(done.Load()), first
}

func enrol(ctx context.Context, opt Options, t *tls.Config, device Key, service string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var nd net.Dialer
	raw, err := nd.DialContext(ctx, "tcp", opt.Addr)
	if err != nil {
		return err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	c := tls.Client(raw, t)
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	state := c.ConnectionState()
	binding, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	proof, err := certs.NewRelatedCertRequest(rand.Reader, device.Cert, device.Private, opt.Now())
	if err != nil {
		return err
	}
	der, err := request(key, base64.StdEncoding.EncodeToString(binding), proof)
	if err != nil {
		return err
	}
	body := base64.StdEncoding.EncodeToString(der)
	if _, err := io.WriteString(c, "POST /.well-known/est/"+service+"/simpleenroll HTTP/1.1\r\nHost: "+opt.Name+
		"\r\nContent-Type: application/pkcs10\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\nConnection: close\r\n\r\n"+body); err != nil {
		return err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(io.LimitReader(r.Body, maxHeader))
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("expected 200, came %s: %s", r.Status, bytes.TrimSpace(text))
	}
	answer, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		return err
	}
	// The certificate is looked for by the key in it: what the answer looks like else is other tests' affair.
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if !bytes.Contains(answer, spki) {
		return errors.New("expected a certificate for the key of the request, came another answer")
	}
	return nil
}

var (
	oidChallenge   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7} // challengePassword: RFC 2985, section 5.4.1
	oidECDSASHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
)

// request makes a PKCS #10 request with the attributes that crypto/x509 cannot make.
func request(key *ecdsa.PrivateKey, binding string, proof []byte) ([]byte, error) {
	attribute := func(oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) []byte {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, value)
		})
		return b.BytesOrPanic()
	}
	attributes := [][]byte{
		attribute(oidChallenge, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.PrintableString, func(b *cryptobyte.Builder) { b.AddBytes([]byte(binding)) })
		}),
		attribute(certs.OIDRelatedCertRequest, func(b *cryptobyte.Builder) { b.AddBytes(proof) }),
	}
	slices.SortFunc(attributes, bytes.Compare) // DER: a SET OF is sorted
	subject, err := asn1.Marshal(pkix.Name{}.ToRDNSequence())
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	var info cryptobyte.Builder
	info.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, a := range attributes {
				b.AddBytes(a)
			}
		})
	})
	signed, err := info.Bytes()
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(signed)
	sig, err := key.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var out cryptobyte.Builder
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(signed)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidECDSASHA256) })
		b.AddASN1BitString(sig)
	})
	return out.Bytes()
}
