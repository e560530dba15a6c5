package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/router/control"
	"wardgate/sp/store"
)

// overlap is how long a certificate that was replaced stays good in these tests.
const overlap = 2 * time.Second

// shortLives has service certificates live for seconds.
var shortLives = map[string]string{"services": fmt.Sprintf("life = \"12s\"\noverlap = \"%v\"\npublish_before = \"3s\"\n", overlap)}

// certificate is the one that a token has for a service. Two at the same time, one of them on its way out,
// are no error; the one that ends last is meant.
func certificate(f *lab.Facility, s *control.Status, service string) (c control.Certificate, err error) {
	for _, x := range s.Token.Certificates {
		if x.Layer == 2 && x.Service == service && x.NotAfter.After(c.NotAfter) {
			c = x
		}
	}
	if c.NotAfter.IsZero() {
		err = fmt.Errorf("the token of %s has no certificate of %s", f.Title, service)
	}
	return c, err
}

// renewals waits until the tokens of A and B have had so many certificates of a service one after the
// other, and the first of them have ended.
func renewals(t *testing.T, h *lab.Hospital, service string, want int) {
	t.Helper()
	type seen struct {
		first, last time.Time
		n           int
	}
	all := map[*lab.Facility]*seen{h.A: {}, h.B: {}}
	must(t, lab.WaitFor(t.Context(), fmt.Sprintf("%d renewals at A and B", want), 3*time.Minute, func() error {
		var missing []string
		for f, c := range all {
			s, err := f.Status(t.Context())
			if err != nil {
				return err
			}
			cert, err := certificate(f, s, service)
			if err != nil {
				return err
			}
			if c.first.IsZero() {
				c.first, c.last = cert.NotAfter, cert.NotAfter
			} else if cert.NotAfter.After(c.last) {
				c.last = cert.NotAfter
				c.n++
			}
			if c.n < want || time.Now().Before(c.first) {
				missing = append(missing, fmt.Sprintf("%s has seen %d, its first one ends at %v", f.Title, c.n, c.first))
			}
		}
		if len(missing) > 0 {
			return errors.New(strings.Join(missing, "; "))
		}
		return nil
	}))
}

// PKI: service certificates are renewed unattended, several times, past the end of the first one, and the
// tunnel that stands on them does not notice; and a router that was without power for longer than its
// certificate lived comes back by its device certificate.
func TestCertificateRenewal(t *testing.T) {
	t.Parallel()
	h := joined(t, "e2e-renewal", shortLives)
	reaches(t, h.Modality, h.Archive)
	up, err := h.B.Connection(t.Context(), "a-b")
	must(t, err)
	undisturbed(t, h, h.Modality, h.Archive, func() {
		renewals(t, h, lab.GroupA, 3)
	})
	now, err := h.B.Connection(t.Context(), "a-b")
	must(t, err)
	if now.State != control.ConnUp || !now.Since.Equal(up.Since) {
		t.Errorf("connection a-b of B is %s since %v; want up since %v, as before the renewals", now.State, now.Since, up.Since)
	}
	// A new tunnel is made with what is there now.
	out, err := h.B.Wardgate(t.Context(), "down", "a-b")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	reaches(t, h.Modality, h.Archive)

	s, err := h.B.Status(t.Context())
	must(t, err)
	last, err := certificate(h.B, s, lab.GroupA)
	must(t, err)
	must(t, h.B.Daemon.Stop(10*time.Second))
	must(t, lab.WaitFor(t.Context(), "B's certificate to end while B is off", time.Minute, func() error {
		if !time.Now().After(last.NotAfter.Add(2 * time.Second)) {
			return fmt.Errorf("it ends at %v", last.NotAfter)
		}
		return nil
	}))
	after := lastAudit(t, h.B)
	must(t, h.B.StartDaemon(t.Context()))
	wantAudit(t, h.B, after, "certificate-enrolled", lab.GroupA)
	reaches(t, h.Modality, h.Archive)
	if got := services(t, h.B); !slices.Equal(got, []string{lab.GroupA}) {
		t.Errorf("B's token has certificates of %v; want one of %s", got, lab.GroupA)
	}
}

// A service gets another CA: devices are told of it by their policies, change over unattended, and nothing
// is interrupted.
func TestCARollOver(t *testing.T) {
	t.Parallel()
	h := joined(t, "e2e-roll", shortLives)
	reaches(t, h.Modality, h.Archive)
	undisturbed(t, h, h.Modality, h.Archive, func() {
		out, err := h.SP.SP(t.Context(), "service", "ca", lab.GroupA)
		must(t, err)
		t.Log(strings.TrimSpace(out))
		must(t, h.SP.Process.Stop(15*time.Second), h.SP.Start(t.Context())) // it would look within a minute
		st := database(t, h)
		defer st.Close()
		must(t, lab.WaitFor(t.Context(), "certificates of the new CA on the tokens of A and B", 3*time.Minute, func() error {
			for _, f := range []*lab.Facility{h.A, h.B} {
				issued, err := st.CertificatesOf(t.Context(), f.DeviceID, 0)
				if err != nil {
					return err
				}
				slices.SortFunc(issued, func(a, b store.Certificate) int { return a.Issued.Compare(b.Issued) })
				issued = slices.DeleteFunc(issued, func(c store.Certificate) bool { return c.Service != lab.GroupA })
				last := issued[len(issued)-1]
				s, err := f.Status(t.Context())
				if err != nil {
					return err
				}
				there, err := certificate(f, s, lab.GroupA)
				if err == nil && (last.Issuer == issued[0].Issuer || !there.NotAfter.Equal(last.NotAfter)) {
					err = fmt.Errorf("%s has one until %v; the centre's last one, until %v, is from %s, its first from %s", f.Title, there.NotAfter, last.NotAfter, last.Issuer, issued[0].Issuer)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}))
	})
	out, err := h.B.Wardgate(t.Context(), "down", "a-b")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	reaches(t, h.Modality, h.Archive)
}

// A device is revoked while its peer cannot reach the centre, and nobody brings the peer its policy: what the
// peer has says nothing of it, and the tunnel ends when the device's certificate does, which is not renewed.
func TestRevokedBehindThePeersBack(t *testing.T) {
	t.Parallel()
	h := joined(t, "e2e-revoked", shortLives)
	reaches(t, h.Scanner, h.Centre)
	before := serial(t, h.A)
	cutOff(t, h, h.A)
	out, err := h.SP.SP(t.Context(), "device", "revoke", h.C.DeviceID, "--reason", "stolen")
	must(t, err)
	t.Log(strings.TrimSpace(out))
	s, err := h.C.Status(t.Context())
	must(t, err)
	last, err := certificate(h.C, s, lab.GroupB)
	must(t, err)
	must(t, lab.WaitFor(t.Context(), "C's last certificate to end", time.Minute, func() error {
		if !time.Now().After(last.NotAfter) {
			return fmt.Errorf("it ends at %v", last.NotAfter)
		}
		return nil
	}))
	ends(t, h.A, "a-c")
	cannotReach(t, h.Scanner, h.Centre)
	if out, err := h.C.Wardgate(t.Context(), "up", "a-c"); err == nil {
		t.Errorf("the revoked router brought a connection up:\n%s", out)
	}
	if now := serial(t, h.A); now != before {
		t.Errorf("A has policy %d; want %d, the one it had: it was cut off", now, before)
	}
}
