package certs

import (
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
var acceptedPaths = remembered{max: 4096}

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
