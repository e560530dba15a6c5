package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wardgate/internal/ikeload"
	"wardgate/internal/lab"
	"wardgate/internal/labca"
)

// benchPSK is the pre-shared key of the test of that name.
const benchPSK = "a pre-shared key of 32 octets!!!"

func (b *ikeBench) authorities() [2]*labca.Authority {
	return [2]*labca.Authority{b.provider.CA.Device, b.provider.CA.Services[lab.GroupA]}
}

// job describes a kind of set-up to our responder, and the responder's side of it to the initiators.
func (b *ikeBench) job(t ikeTest) (*ikeload.Job, error) {
	j := &ikeload.Job{
		Local: ikeAddrs[0], Clients: b.count + warmUp, IKE: []string{t.ike}, ESP: []string{benchESP},
		Status: b.lab.Path("responder.sock"),
	}
	if t.resume {
		j.Tickets, j.Chains = make([]byte, 32), b.lab.Path("chains.json")
		_, _ = rand.Read(j.Tickets) // which does not fail
		if err := os.RemoveAll(j.Chains); err != nil {
			return nil, err
		}
	}
	if t.rounds == 0 {
		j.PSK = benchPSK
	}
	cas := b.authorities()
	for k := range t.rounds {
		r, err := b.mine[k].Round(cas[k], ikeNames[k].role, ikeNames[k].clients)
		if err != nil {
			return nil, err
		}
		j.Rounds = append(j.Rounds, r)
	}
	if t.token {
		module, label, pin := b.facility.TokenAccess()
		j.Chip = &ikeload.Chip{
			Binary: filepath.Join(b.bin, "wardgate-chip"), Module: module, Label: label, PINFile: pin, Service: lab.GroupA, Env: b.facility.Env(),
		}
	}
	return j, nil
}

func (b *ikeBench) startWardgate(ctx context.Context, j *ikeload.Job, t ikeTest) (*responder, error) {
	if err := os.RemoveAll(j.Status); err != nil {
		return nil, err
	}
	file := b.lab.Path("job.json")
	if err := j.Write(file); err != nil {
		return nil, err
	}
	args := []string{filepath.Join(b.bin, "wardgate-lab"), "ike-responder", file}
	if b.profile != "" {
		args = append(args, "--profile", filepath.Join(b.profile, fmt.Sprintf("ike-%s-%d.pprof", t.name, b.round)))
	}
	p, err := b.lab.Start(b.facility.Router, "responder", nil, args...)
	if err != nil {
		return nil, err
	}
	r := &responder{
		process: p,
		status:  func(ctx context.Context) (ikeload.Status, error) { return ikeload.Ask(ctx, j.Status) },
		stop: func() error {
			err := p.Stop(10 * time.Second)
			if exit := p.ExitErr(); err == nil && exit != nil && p.Running() != nil {
				lines := p.Tail(1)
				if !strings.Contains(lines, errInterrupted.Error()) && lines != "" {
					err = fmt.Errorf("responder: %w: %s", exit, lines)
				}
			}
			return err
		},
	}
	if t.token {
		r.helper = "wardgate-chip"
	}
	err = lab.WaitFor(ctx, "our responder to listen", 20*time.Second, func() error {
		if err := p.Running(); err != nil {
			return err
		}
		_, err := r.status(ctx)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, r.stop())
	}
	return r, nil
}

// loadSettings let strongSwan take many initiators from one address, and find IKE SAs fast.
const loadSettings = `threads = 16
    dos_protection = no
    half_open_timeout = 60
    ikesa_table_size = 4096
    ikesa_table_segments = 16
    install_routes = no`

func (b *ikeBench) startStrongSwan(ctx context.Context, t ikeTest) (*responder, error) {
	var token *lab.StrongSwanToken
	if t.token {
		token = &lab.StrongSwanToken{Env: b.facility.Env()}
	}
	s, err := b.lab.StartLoadedStrongSwan(ctx, b.facility.Router, fmt.Sprintf("ss-%s-%d", t.name, b.round), loadSettings, token)
	if err != nil {
		return nil, err
	}
	if err := b.configure(ctx, s, t); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return &responder{process: s.Process(), stop: s.Stop}, nil
}

// configure gives charon the credentials and one connection for all initiators.
func (b *ikeBench) configure(ctx context.Context, s *lab.StrongSwan, t ikeTest) error {
	var rounds, secrets strings.Builder
	certs := lab.SwanPeer{LocalCerts: [2]string{"certs = device.pem", "certs = service.pem"}}
	switch {
	case t.rounds == 0:
		fmt.Fprintf(&rounds, "  local {\n   auth = psk\n   id = %s\n  }\n  remote {\n   auth = psk\n  }\n", ikeload.PSKResponder)
		fmt.Fprintf(&secrets, "secrets {\n ike-1 {\n  secret = \"%s\"\n }\n}\n", benchPSK)
	case t.token:
		if err := s.LoadToken(b.provider, b.facility, lab.GroupA, &certs); err != nil {
			return err
		}
		secrets.WriteString(certs.Secrets)
	default:
		var errs []error
		for k, ca := range b.authorities() {
			role := ikeNames[k].role
			errs = append(errs, s.AddCA(role+"-ca.pem", ca.Anchor()), s.AddCert(role+".pem", b.mine[k].Leaf), s.AddKey(role+".pem", b.mine[k].Key))
			for _, c := range ca.Intermediates() {
				errs = append(errs, s.AddCA(role+"-issuing.pem", c))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	for k := range t.rounds {
		n := ikeNames[k]
		fmt.Fprintf(&rounds, "  local-%d {\n   auth = pubkey\n   id = %s\n   %s\n  }\n", k+1, n.responder, certs.LocalCerts[k])
		fmt.Fprintf(&rounds, "  remote-%d {\n   auth = pubkey\n   cacerts = %s-ca.pem\n  }\n", k+1, n.role)
	}
	return s.Load(ctx, fmt.Sprintf(`connections {
 load {
  version = 2
  mobike = no
  unique = never
  local_addrs = %v
  remote_addrs = %%any
  proposals = %s
  rekey_time = 0
%s  children {
   net {
    local_ts = %s
    remote_ts = %s
    esp_proposals = %s
    rekey_time = 0
   }
  }
 }
}
%s`, ikeAddrs[0], t.ike, rounds.String(), ikeload.ResponderTS, ikeload.ClientTS, benchESP, secrets.String()))
}
