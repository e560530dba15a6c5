package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"sync"
)

// remembered is a bounded set of things that were found to hold, each named by a hash of all that it
// follows from. What did not hold is not kept: a stranger could fill the set with it.
type remembered struct {
	max int

	mu   sync.Mutex
	good map[[sha256.Size]byte]struct{}
	old  map[[sha256.Size]byte]struct{} // the generation before, so that no moment forgets everything
}

// acceptedPaths are the paths that crypto/x509 accepted. Each costs less than 100 octets.
var acceptedPaths = remembered{max: 1 << 14}

// knownCAs are the certificates of CAs that stood on an accepted path, so that those few, which every peer
// sends again, are parsed and kept once.
var knownCAs = parsedCAs{max: 256}

type parsedCAs struct {
	max int

	mu sync.Mutex
	by map[string]*x509.Certificate // DER
}

// KnownCA returns a CA's certificate that stood on an accepted path, for everybody who meets the same
// octets again, or nil. It says nothing about whether it is good today. Nobody may change it.
func KnownCA(der []byte) *x509.Certificate {
	knownCAs.mu.Lock()
	defer knownCAs.mu.Unlock()
	return knownCAs.by[string(der)]
}

func (p *parsedCAs) add(c *x509.Certificate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by[string(c.Raw)] != nil {
		return
	}
	if p.by == nil || len(p.by) >= p.max {
		p.by = map[string]*x509.Certificate{}
	}
	p.by[string(c.Raw)] = c
}

func (r *remembered) has(key [sha256.Size]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.good[key]; ok {
		return true
	}
	_, ok := r.old[key]
	if ok {
		r.addLocked(key) // what is used stays
	}
	return ok
}

func (r *remembered) add(key [sha256.Size]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addLocked(key)
}

func (r *remembered) addLocked(key [sha256.Size]byte) {
	if r.good == nil || len(r.good) >= r.max {
		r.old, r.good = r.good, map[[sha256.Size]byte]struct{}{}
	}
	r.good[key] = struct{}{}
}

// AcceptedPath returns the key of the path from a leaf over CAs in the order given (DER) to one of the anchors,
// if crypto/x509 accepted it. Whoever has the key can have it accepted again with [AcceptPath], after a restart
// for instance, without another check of its signatures.
func AcceptedPath(leaf []byte, cas [][]byte, anchors []*x509.Certificate) (key [sha256.Size]byte, ok bool) {
	path := make([]*x509.Certificate, 0, len(cas)+2)
	path = append(path, &x509.Certificate{Raw: leaf})
	for _, der := range cas {
		path = append(path, &x509.Certificate{Raw: der})
	}
	issuer := path[len(path)-1]
	if c := KnownCA(issuer.Raw); c != nil {
		issuer = c
	}
	for _, a := range anchors {
		if len(issuer.RawIssuer) > 0 && !bytes.Equal(issuer.RawIssuer, a.RawSubject) {
			continue
		}
		if key = pathKey(append(path, a)); acceptedPaths.has(key) {
			return key, true
		}
	}
	return [sha256.Size]byte{}, false
}

// AcceptPath has the signatures of a path, and all else that crypto/x509 looks at but the time, accepted
// from now on. key must be from [AcceptedPath] and out of hands that nobody else writes to.
func AcceptPath(key [sha256.Size]byte) { acceptedPaths.add(key) }

// pathKey names a path by all octets of its certificates, each with its length in front.
func pathKey(path []*x509.Certificate) [sha256.Size]byte {
	h := sha256.New()
	var n [8]byte
	for _, c := range path {
		binary.BigEndian.PutUint64(n[:], uint64(len(c.Raw)))
		h.Write(n[:])
		h.Write(c.Raw)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
