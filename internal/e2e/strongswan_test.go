package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/internal/testvectors"
	"wardgate/policy"
	"wardgate/router/control"
)

func needStrongSwan(t *testing.T) {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat("/usr/sbin/charon-systemd"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: run .ci/install", err)
		}
		t.Skipf("%v: run .ci/install", err)
	}
}

// swanCase is one meeting of wardgated (hospital A) and strongSwan (clinic B).
type swanCase struct {
	name     string
	ike, esp string
	tree     string // of strongSwan 6 (internal/interop/strongswan6.sh); empty: the machine's 5.9.8
}

// strongSwan6 is the tree of a strongSwan with ML-KEM.
func strongSwan6(t *testing.T) string {
	t.Helper()
	tree := filepath.Join(testvectors.Root(), "build/tools/.strongswan6")
	if _, err := os.Stat(tree + "/.complete"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: run .ci/install", err)
		}
		t.Skipf("%v: run .ci/install", err)
	}
	return tree
}

// A's wardgated against B's strongSwan, 5.9.8 and 6.1 with ML-KEM in every key exchange (ESP in user space,
// always in UDP): two rounds of certificates on both sides; strongSwan and wardgated as initiator; rekeyed
// from both sides while 10,000 pings and a TCP transfer cross without loss; deleted from both sides.
func TestStrongSwan(t *testing.T) {
	needStrongSwan(t)
	for _, c := range []swanCase{
		{"p256", "aes128gcm16-prfsha256-ecp256", "aes128gcm16-ecp256", ""},
		{"mlkem", "aes256gcm16-prfsha384-x25519-ke1_mlkem768", "aes256gcm16-x25519-ke1_mlkem768", strongSwan6(t)},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, s := meet(t, "e2e-swan-"+c.name, c, nil)
			ctx := t.Context()

			// strongSwan initiates.
			if out, err := s.Ctl(ctx, "--initiate", "--child", "net", "--timeout", "10"); err != nil {
				t.Fatalf("%v\n%s\n%s", err, out, s.Log())
			}
			burst(t, h.Modality, h.Archive, 20, time.Millisecond)
			burstBack(t, h)
			sas, err := s.SAs(ctx)
			must(t, err)
			t.Logf("strongSwan initiated:\n%s", sas)
			// strongSwan deletes.
			_, err = s.Ctl(ctx, "--terminate", "--ike", "dual")
			must(t, err, h.A.WaitState(ctx, "a-b", control.ConnIdle, 5*time.Second))

			// wardgated initiates, on demand: A's archive pings.
			burstBack(t, h)
			must(t, h.A.WaitState(ctx, "a-b", control.ConnUp, 5*time.Second))
			if sas, err = s.SAs(ctx); err != nil || !strings.Contains(sas, "INSTALLED") {
				t.Fatalf("strongSwan after wardgated initiated: %v\n%s", err, sas)
			}

			// Both rekey both SAs while traffic flows: strongSwan when told to, in the first
			// seconds; wardgated afterwards, by the lifetimes of its policy.
			underLoad(t, h, func(ctx context.Context) error {
				for _, what := range [][]string{{"--child", "net"}, {"--ike", "dual"}, {"--child", "net"}, {"--ike", "dual"}} {
					if out, err := s.Ctl(ctx, append([]string{"--rekey"}, what...)...); err != nil && ctx.Err() == nil {
						return fmt.Errorf("%w\n%s", err, out)
					}
					select {
					case <-ctx.Done():
						return nil
					case <-time.After(time.Second):
					}
				}
				return nil
			})
			mine, theirs := rekeys(s.Log())
			t.Logf("rekeyed by strongSwan: %+v, by wardgated: %+v", mine, theirs)
			if mine.child == 0 || mine.ike == 0 || theirs.child == 0 || theirs.ike == 0 {
				t.Errorf("rekeyed by strongSwan %+v, by wardgated %+v; want each of CHILD and IKE SA by each side\n%s", mine, theirs, s.Log())
			}
			if n := strings.Count(s.Log(), "parsed IKE_FOLLOWUP_KE response"); (n >= mine.child+mine.ike-1) != (c.tree != "") {
				t.Errorf("%d answers to IKE_FOLLOWUP_KE", n)
			}
			// wardgated deletes.
			_, err = h.A.Wardgate(ctx, "down", "a-b")
			must(t, err, s.WaitIdle(ctx, 5*time.Second))
		})
	}
}

// strongSwan with its keys on a SoftHSM token, made by the product's own tools.
func TestStrongSwanWithToken(t *testing.T) {
	needStrongSwan(t)
	h, s := meet(t, "e2e-swan-hsm", swanCase{ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16"}, &lab.StrongSwanToken{})
	if out, err := s.Ctl(t.Context(), "--initiate", "--child", "net", "--timeout", "10"); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, s.Log())
	}
	burst(t, h.Modality, h.Archive, 20, time.Millisecond)
	_, err := s.Ctl(t.Context(), "--terminate", "--ike", "dual")
	must(t, err, h.A.WaitState(t.Context(), "a-b", control.ConnIdle, 5*time.Second))
	burstBack(t, h) // and as responder
}

// meet starts A's wardgated and, in the place of B's router, strongSwan. With a token, strongSwan
// uses the keys on B's token; otherwise keys in files. change may alter the contracts.
func meet(t *testing.T, name string, c swanCase, token *lab.StrongSwanToken, change ...func(*lab.Hospital)) (*lab.Hospital, *lab.StrongSwan) {
	t.Helper()
	h := bareHospital(t, name)
	for _, f := range change {
		f(h)
	}
	ctx := t.Context()
	must(t, h.A.WriteConfig(""), h.A.StartDaemon(ctx))
	d, err := h.Provider.Policy(h.A, h.Contracts())
	must(t, err)
	d.Suites = policy.Suites{IKE: []string{c.ike}, ESP: []string{c.esp}}
	// Short lives, so that wardgated rekeys while the test watches.
	d.Lifetimes = policy.Lifetimes{IKE: policy.Duration(lifeIKE), Child: policy.Duration(lifeChild)}
	must(t, h.A.InstallPolicy(ctx, h.Provider, d))

	peer := lab.SwanPeer{
		LocalAddr: h.B.WAN.String(), RemoteAddr: h.A.WAN.String(),
		LocalDevice: h.B.DeviceID, LocalService: h.B.ServiceID(lab.GroupA),
		RemoteDevice: h.A.DeviceID, RemoteService: h.A.ServiceID(lab.GroupA),
		DeviceCA: "device-ca.pem", ServiceCA: "service-ca.pem",
		LocalTS: h.Modality.Zone.Prefix.String(), RemoteTS: h.Archive.Addr.String() + "/32",
		IKE: c.ike, ESP: c.esp,
	}
	must(t, h.B.Router.Sysctl("net.ipv4.ip_forward=1")) // strongSwan leaves that to the administrator
	if token != nil {
		token.Env = h.B.Env()
	}
	var s *lab.StrongSwan
	if c.tree != "" {
		s, err = h.Lab.StartStrongSwanOf(ctx, h.B.Router, c.tree, "swan-b")
	} else {
		s, err = h.Lab.StartStrongSwan(ctx, h.B.Router, "swan-b", token)
	}
	must(t, err)
	if token == nil {
		id, err := h.Provider.Forge(h.B, lab.GroupA, nil)
		must(t, err, s.LoadIdentity(h.Provider, id, lab.GroupA))
	} else {
		must(t, s.LoadToken(h.Provider, h.B, lab.GroupA, &peer))
	}
	must(t, s.Load(ctx, peer.Config()))
	return h, s
}

const (
	lifeIKE   = 13 * time.Second
	lifeChild = 10 * time.Second
)

// burstBack lets A's archive ping B's modality.
func burstBack(t *testing.T, h *lab.Hospital) {
	t.Helper()
	if out, err := h.Archive.Run(t.Context(), "ping", "-c", "3", "-i", "0.05", "-W", "5", h.Modality.Addr.String()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

var pingReceived = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

// underLoad lets 10,000 pings and a TCP transfer cross the tunnel while meanwhile does what it does.
func underLoad(t *testing.T, h *lab.Hospital, meanwhile func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stop, stopMeanwhile := context.WithCancel(ctx)
	var wg sync.WaitGroup
	errs := make(chan error, 3)
	wg.Go(func() {
		const n = 10_000
		out, err := h.Modality.Run(ctx, "ping", "-q", "-c", strconv.Itoa(n), "-i", "0.003", "-W", "5", h.Archive.Addr.String())
		m := pingReceived.FindStringSubmatch(out)
		if m == nil || m[1] != strconv.Itoa(n) || m[2] != m[1] {
			err = errors.Join(err, fmt.Errorf("ping: want %d of %d received:\n%s", n, n, out))
		}
		errs <- err
		t.Logf("ping: %s", strings.TrimSpace(out))
	})
	wg.Go(func() {
		const size = 64 << 20
		start := time.Now()
		errs <- transfer(ctx, h.Modality, h.Archive, lab.DICOMPort, size, 20*time.Millisecond)
		t.Logf("TCP: %d MiB in %v", size>>20, time.Since(start))
	})
	done := make(chan error, 1)
	go func() { done <- meanwhile(stop) }()
	wg.Wait()
	stopMeanwhile()
	must(t, <-errs, <-errs, <-done)
}

// transfer sends size bytes over TCP to a server that it starts on another host, with a pause
// after each 64 KiB so that it lasts, and compares what arrived.
func transfer(ctx context.Context, from, host *lab.Host, port uint16, size int64, pause time.Duration) error {
	to := addrPort(host, port)
	var ln net.Listener
	if err := host.Do(func() (err error) {
		ln, err = net.Listen("tcp", to.String())
		return err
	}); err != nil {
		return err
	}
	defer ln.Close()
	got := make(chan []byte, 1)
	go func() {
		sum := sha256.New()
		if c, err := ln.Accept(); err == nil {
			_, _ = io.Copy(sum, c) // a broken transfer shows in the sum
			c.Close()
		}
		got <- sum.Sum(nil)
	}()
	var conn net.Conn
	if err := from.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", to.String(), 10*time.Second)
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	if d, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(d); err != nil {
			return err
		}
	}
	sum := sha256.New()
	buf := make([]byte, 1<<16)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for sent := int64(0); sent < size; sent += int64(len(buf)) {
		buf[0] = byte(sent >> 16)
		sum.Write(buf)
		if _, err := conn.Write(buf); err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	conn.Close()
	if !bytes.Equal(<-got, sum.Sum(nil)) {
		return errors.New("the TCP transfer arrived changed")
	}
	return nil
}

type rekeyCount struct{ child, ike int }

// rekeys counts in charon's log what either side rekeyed.
func rekeys(log string) (byCharon, byPeer rekeyCount) {
	for line := range strings.Lines(log) {
		switch {
		case strings.Contains(line, "generating CREATE_CHILD_SA request") && strings.Contains(line, "REKEY_SA"):
			byCharon.child++
		case strings.Contains(line, "parsed CREATE_CHILD_SA request") && strings.Contains(line, "REKEY_SA"):
			byPeer.child++
		case strings.Contains(line, "generating CREATE_CHILD_SA request") && !strings.Contains(line, "TSi"):
			byCharon.ike++
		case strings.Contains(line, "parsed CREATE_CHILD_SA request") && !strings.Contains(line, "TSi"):
			byPeer.ike++
		}
	}
	return byCharon, byPeer
}
