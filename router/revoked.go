package router

import (
	"context"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"wardgate/ike"
	"wardgate/pkichip"
	"wardgate/router/revocation"
)

// verifyTime bounds what the verdict about one certificate may take when something has to be fetched
// for it; the handshake has to end within ike.Config.HalfOpenTimeout.
const verifyTime = 7 * time.Second

// verifyPeer judges a certificate of a peer.
func (r *Router) verifyPeer(q ike.CertQuery) error {
	return VerifyPeer(q, r.revocation, func(missing error) {
		r.log.Sugar().Infow("revocation state is not to be had", "of", q.ID.String(), "error", missing)
	})
}

// VerifyPeer judges a certificate of a peer (ike.Config.Verify). Where the connection requires that its
// revocation state is known, and neither the lists at hand nor the peer's OCSP responses say it, what the
// certificates point to is fetched, but only after they were verified in everything else: before that, the URIs
// are anybody's. missing is told what could not be had.
func VerifyPeer(q ike.CertQuery, f *revocation.Fetcher, missing func(error)) error {
	err := ike.DefaultVerify(q)
	if err == nil || !q.Auth.RequireCRL || ike.VerdictCode(err) != ike.CodeNoCRL {
		return err
	}
	lenient := *q.Auth
	lenient.RequireCRL = false
	probe := q
	probe.Auth = &lenient
	chain, bad := ike.VerifiedChain(probe)
	if bad != nil {
		return bad
	}
	ctx, cancel := context.WithTimeout(context.Background(), verifyTime)
	defer cancel()
	lists, responses, gone := f.For(ctx, chain)
	if gone != nil {
		missing(gone)
	}
	strict := *q.Auth
	strict.CRLs = append(slices.Clone(strict.CRLs), lists...)
	again := q
	again.Auth, again.OCSP = &strict, append(slices.Clone(q.OCSP), responses...)
	return ike.DefaultVerify(again)
}

// staples keep OCSP responses about our own certificates, for peers that ask for them (RFC 4806).
type staples struct {
	mu  sync.Mutex        // guards all
	der map[string][]byte // by the certificate's DER
}

// of returns the function that ike asks.
func (s *staples) of(c *pkichip.Credential) func() []byte {
	key := string(c.Cert.Raw)
	return func() []byte {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.der[key]
	}
}

// keepStaples fetches them anew every few minutes. What cannot be had is gone when it has ended: the
// fetcher keeps it until then.
func (r *Router) keepStaples(ctx context.Context) {
	t := time.NewTicker(stapleEvery)
	defer t.Stop()
	for {
		r.fetchStaples(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-r.staplesWanted:
		}
	}
}

const stapleEvery = 5 * time.Minute

func (r *Router) fetchStaples(ctx context.Context) {
	r.mu.Lock()
	creds := r.creds
	doc := r.doc
	r.mu.Unlock()
	if doc == nil {
		return
	}
	anchors := doc.Table().DeviceAnchors()
	for _, c := range doc.Table().Connections() {
		for _, a := range c.Anchors {
			if !slices.Contains(anchors, a) {
				anchors = append(slices.Clip(anchors), a)
			}
		}
	}
	fresh := make(map[string][]byte)
	for i := range creds {
		c := &creds[i]
		if c.Cert == nil || len(c.Cert.OCSPServer) == 0 {
			continue
		}
		issuer := issuerOf(c.Cert, c.Chain, anchors)
		if issuer == nil {
			continue
		}
		der, err := r.revocation.OCSP(ctx, c.Cert, issuer)
		if err != nil {
			continue // the fetcher has said so
		}
		fresh[string(c.Cert.Raw)] = der
	}
	r.staples.mu.Lock()
	r.staples.der = fresh
	r.staples.mu.Unlock()
}

// issuerOf finds who issued a certificate of ours, by its signature.
func issuerOf(c *x509.Certificate, lists ...[]*x509.Certificate) *x509.Certificate {
	for _, list := range lists {
		for _, x := range list {
			if c.CheckSignatureFrom(x) == nil {
				return x
			}
		}
	}
	return nil
}
