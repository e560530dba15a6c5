package issue

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"wardgate/internal/certs"
)

// crlState is the list that was made last for one CA.
type crlState struct {
	list *x509.RevocationList
	of   [32]byte // what it names
}

// CRLs returns the current revocation lists of all CAs in use: each issuing CA's, and each root's
// where its key is here or its list was brought along. They are numbered, and good for
// Config.CRLLife. As long as nothing is revoked, the same list is returned for half of its life, so
// that what contains it (a policy) does not change either.
func (s *Service) CRLs(ctx context.Context, now time.Time) ([]*x509.RevocationList, error) {
	var out []*x509.RevocationList
	seen := map[string]bool{}
	for _, ca := range s.cas.Load().list {
		l, err := s.CRL(ctx, KeyID(ca.Cert), now)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
		if seen[KeyID(ca.Root)] {
			continue
		}
		seen[KeyID(ca.Root)] = true
		root, err := ca.rootCRL(ctx, s, now)
		if err != nil {
			return nil, err
		}
		if root != nil {
			out = append(out, root)
		}
	}
	return out, nil
}

// CRL returns the current list of one CA in use, issuing or root, by its KeyID. ErrUnknownCA;
// ErrRootOffline when it is a root whose key and list are elsewhere.
func (s *Service) CRL(ctx context.Context, keyID string, now time.Time) (*x509.RevocationList, error) {
	for _, ca := range s.cas.Load().list {
		switch keyID {
		case KeyID(ca.Cert):
			// RFC 5280, section 3.3: an entry stays until after the certificate has ended; one
			// list's life more, so that nobody misses it.
			revoked, err := s.cfg.Recorder.Revoked(ctx, s.cfg.Name, keyID, now.Add(-s.cfg.CRLLife), now)
			if err != nil {
				return nil, err
			}
			return s.makeCRL(ctx, ca.Cert, ca.Key, revoked, now)
		case KeyID(ca.Root):
			l, err := ca.rootCRL(ctx, s, now)
			if l == nil && err == nil {
				err = fmt.Errorf("%w: bring the root's list along", ErrRootOffline)
			}
			return l, err
		}
	}
	return nil, fmt.Errorf("%w: service %s has no CA %s", ErrUnknownCA, s.cfg.Name, certs.Quote(keyID))
}

func (s *Service) makeCRL(ctx context.Context, issuer *x509.Certificate, key crypto.Signer, revoked []Record, now time.Time) (*x509.RevocationList, error) {
	slices.SortFunc(revoked, func(a, b Record) int { return cmp.Compare(a.Serial, b.Serial) })
	h := sha256.New()
	for i := range revoked {
		fmt.Fprintf(h, "%s %d %d\n", revoked[i].Serial, revoked[i].RevokedAt.Unix(), revoked[i].Reason)
	}
	var of [32]byte
	h.Sum(of[:0])
	id := KeyID(issuer)
	s.mu.Lock()
	last := s.crls[id]
	s.mu.Unlock()
	if last != nil && last.of == of && !now.Before(last.list.ThisUpdate) && now.Before(last.list.ThisUpdate.Add(s.cfg.CRLLife/2)) {
		return last.list, nil
	}
	entries := make([]x509.RevocationListEntry, 0, len(revoked))
	for i := range revoked {
		serial, err := hex.DecodeString(revoked[i].Serial)
		if err != nil {
			return nil, fmt.Errorf("record of certificate %s: its serial number is not hexadecimal", certs.Quote(revoked[i].Serial))
		}
		entries = append(entries, x509.RevocationListEntry{SerialNumber: new(big.Int).SetBytes(serial), RevocationTime: revoked[i].RevokedAt, ReasonCode: revoked[i].Reason})
	}
	number, err := s.cfg.Recorder.NextCRLNumber(ctx, s.cfg.Name, id)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateRevocationList(s.cfg.Rand, &x509.RevocationList{
		Number: big.NewInt(number), ThisUpdate: now, NextUpdate: now.Add(s.cfg.CRLLife), RevokedCertificateEntries: entries,
	}, issuer, key)
	if errors.Is(err, ErrUnavailable) && last != nil && last.of == of && now.Before(last.list.NextUpdate) {
		return last.list, nil // what is true is told as long as it may be, also while the key is away
	}
	if err != nil {
		return nil, fmt.Errorf("signing the revocation list of %s: %w", certs.SubjectOf(issuer), err)
	}
	if len(der) > certs.MaxCRLBytes {
		return nil, fmt.Errorf("revocation list of %s: expected at most %d octets, got %d; make a successor of the CA (roll-over), which begins with an empty list", certs.SubjectOf(issuer), certs.MaxCRLBytes, len(der))
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Another call may have made one meanwhile: the higher number is the later one.
	if was := s.crls[id]; was == nil || bytes.Equal(was.of[:], of[:]) || was.list.Number.Cmp(l.Number) < 0 {
		s.crls[id] = &crlState{list: l, of: of}
	}
	return l, nil
}
