package router

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Session resumption (RFC 5723): what this router must keep so that its peers, who hold tickets of
// it, are back in two round trips after it has restarted. The tickets that it holds itself are kept
// in memory alone, because keys of IKE SAs lie beside them: a router that has restarted proves itself
// anew to everybody who has no ticket of it.
const (
	ticketSecretsFile = "ticket-secrets"
	peerCertsDir      = "peer-certificates" // public
	ticketSecretSize  = 32                  // octets
	ticketSecretFresh = 24 * time.Hour      // a new one seals then
	ticketSecretLife  = 48 * time.Hour      // until the last ticket of 24 h that it sealed has expired
)

// ticketSecret seals tickets. Whoever has one while it is in use can be any peer to this router, so
// that none lives long, the file is root's, and lies in the runtime directory, which is memory: it is
// there again after the daemon has crashed, and gone with the power. What is on the disk of a stolen
// router opens nothing without its token.
type ticketSecret struct {
	Made   time.Time `json:"made"`
	Secret []byte    `json:"secret"`
}

// ticketSecrets returns the secrets that are in use at now, the newest first, and makes the next one
// when it is time. A file that was damaged, or written by a clock that is ahead, is made anew:
// peers then prove themselves in full.
func ticketSecrets(dir string, now time.Time) ([][]byte, error) {
	path := filepath.Join(dir, ticketSecretsFile)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the secrets of tickets: %w", err)
	}
	var list []ticketSecret
	if json.Unmarshal(b, &list) != nil {
		list = nil
	}
	before := len(list)
	list = slices.DeleteFunc(list, func(s ticketSecret) bool {
		age := now.Sub(s.Made)
		return len(s.Secret) != ticketSecretSize || age < -time.Hour || age >= ticketSecretLife
	})
	fresh := len(list) == 0 || now.Sub(list[0].Made) >= ticketSecretFresh
	if fresh {
		s := ticketSecret{now.UTC().Truncate(time.Second), make([]byte, ticketSecretSize)}
		if _, err := rand.Read(s.Secret); err != nil {
			return nil, fmt.Errorf("the secrets of tickets: %w", err)
		}
		list = append([]ticketSecret{s}, list...)
	}
	list = list[:min(len(list), 4)]
	if fresh || len(list) != before {
		b, err := json.Marshal(list)
		if err == nil {
			err = writeFile(path, b, 0o600)
		}
		if err != nil {
			return nil, fmt.Errorf("the secrets of tickets: %w", err)
		}
	}
	out := make([][]byte, len(list))
	for i, s := range list {
		out[i] = s.Secret
	}
	return out, nil
}

// tendTickets replaces the secrets of tickets when it is time, and drops certificates that no ticket
// can name any more.
func (r *Router) tendTickets(now time.Time) {
	if now.Sub(r.ticketsTended) < time.Hour && !now.Before(r.ticketsTended) {
		return
	}
	r.ticketsTended = now
	secrets, err := ticketSecrets(r.cfg.Daemon.RunDir, now)
	if err == nil {
		err = r.ep.SetTicketSecrets(secrets...)
	}
	if err != nil {
		r.log.Warn("the secrets of tickets stay as they are", zap.Error(err))
	}
	peerCerts{filepath.Join(r.cfg.Daemon.StateDir, peerCertsDir), r.log}.prune(now)
}

// peerCerts is an ike.ChainStore of files, named by the hash of the leaf.
type peerCerts struct {
	dir string
	log *zap.Logger
}

func (s peerCerts) file(leaf [32]byte) string {
	return filepath.Join(s.dir, hex.EncodeToString(leaf[:]))
}

// SaveChain keeps a chain. What cannot be kept costs its peer a full proof one day, and nothing else.
func (s peerCerts) SaveChain(leaf [32]byte, chain [][]byte) {
	path, now := s.file(leaf), time.Now()
	if os.Chtimes(path, now, now) == nil {
		return
	}
	err := os.MkdirAll(s.dir, 0o700)
	if err == nil {
		err = writeFile(path, bytes.Join(chain, nil), 0o600)
	}
	if err != nil {
		s.log.Warn("a peer's certificate is not kept: it cannot resume after a restart", zap.Error(err))
	}
}

// LoadChain returns a chain. That its leaf is the right one is checked by the caller.
func (s peerCerts) LoadChain(leaf [32]byte) [][]byte {
	b, err := os.ReadFile(s.file(leaf))
	if err != nil {
		return nil
	}
	certs, err := x509.ParseCertificates(b)
	if err != nil {
		return nil
	}
	out := make([][]byte, len(certs))
	for i, c := range certs {
		out[i] = c.Raw
	}
	return out
}

// prune drops what no ticket can name any more: each ticket that is given renews its certificates.
func (s peerCerts) prune(now time.Time) {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return // nothing was kept yet
	}
	for _, e := range list {
		info, err := e.Info()
		if err == nil && now.Sub(info.ModTime()) > ticketSecretLife {
			if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil {
				s.log.Warn("an old certificate of a peer stays", zap.Error(err))
			}
		}
	}
}
