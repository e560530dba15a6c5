package sp

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
)

// The states of a service's CA:
//
//	unfinished ──▶ published ──▶ issues ──▶ used ──▶ ended
//	waits      ──▶
const (
	CAUnfinished = "unfinished" // its making was cut short: the same command again goes on
	CAWaits      = "waits"      // for an upstream issuer's answer
	CAPublished  = "published"  // its anchor is in the policies, it does not issue yet
	CAIssues     = "issues"
	CAUsed       = "used" // issues no more; there may be certificates by it
	CAEnded      = "ended"
	CABroken     = "broken" // cannot be read: Fault says why
)

// CAState tells how one CA of a service is.
type CAState struct {
	Number   int       `json:"number"`
	State    string    `json:"state"`
	Folder   string    `json:"folder"`
	Key      string    `json:"key,omitempty"` // "file", or what names it on the token
	Root     string    `json:"root,omitempty"`
	From     time.Time `json:"from,omitzero"` // when it begins to issue; zero: it did at once
	NotAfter time.Time `json:"not_after,omitzero"`
	Fault    string    `json:"fault,omitempty"`
}

// CAs tells how the CAs of a service are, the newest first, also those that are being made.
func (c *Centre) CAs(r *registry.Registry, name string) ([]CAState, error) {
	s, err := withCA(r, name)
	if err != nil {
		return nil, err
	}
	m := c.maker()
	out := []CAState{}
	pending, number, err := m.pending(s.Name)
	if err != nil {
		return nil, err
	}
	if is, err := exists(pending); err != nil {
		return nil, err
	} else if is {
		state := CAState{Number: number, State: CAUnfinished, Folder: pending, Key: whereKey(pending)}
		if asked, err := exists(filepath.Join(pending, requestFile)); err == nil && asked {
			state.State = CAWaits
		}
		out = append(out, state)
	}
	numbers, err := generations(m.own(s.Name))
	if err != nil {
		return nil, err
	}
	var usable []*issue.CA
	var place []int
	for _, n := range numbers {
		folder := filepath.Join(m.own(s.Name), strconv.Itoa(n))
		state := CAState{Number: n, State: CAUsed, Folder: folder, Key: whereKey(folder)}
		ca, err := issue.OpenCA(folder, c.token.caKey, m.now)
		if err != nil {
			state.State, state.Fault = CABroken, err.Error()
			if errors.Is(err, issue.ErrCAEnded) {
				state.State = CAEnded
			}
			out = append(out, state)
			continue
		}
		state.Root, state.From, state.NotAfter = certs.SubjectOf(ca.Root), ca.From, ca.Cert.NotAfter
		if m.now.Before(ca.From) {
			state.State = CAPublished
		}
		usable, place = append(usable, ca), append(place, len(out))
		out = append(out, state)
	}
	if len(usable) > 0 {
		cfg := c.cfg.Services.certificates()
		cfg.Name, cfg.Domain, cfg.Rand, cfg.Recorder = s.Name, s.Domain, c.rand, c.auth.recorder
		svc, err := issue.NewService(cfg, m.now, usable...)
		if err != nil {
			return nil, err
		}
		for i, ca := range usable {
			if ca == svc.Issuing(m.now) {
				out[place[i]].State = CAIssues
			}
		}
	}
	return out, nil
}

func whereKey(folder string) string {
	if line, err := os.ReadFile(filepath.Join(folder, "ca.uri")); err == nil {
		return strings.TrimSpace(string(line))
	}
	return "file"
}
