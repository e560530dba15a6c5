package sploadgen

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"wardgate/policy"
)

// Judge follows what all devices were given, and says what was wrong with it.
type Judge struct {
	scenario *Scenario
	signers  []*x509.Certificate
	now      func() time.Time
	serial   map[string]uint64 // of the newest policy of each device
	says     map[string]string
}

// NewJudge makes a judge for devices that have nothing yet. signers are the anchors of the policies' signer.
func NewJudge(s *Scenario, signers []*x509.Certificate, now func() time.Time) *Judge {
	return &Judge{scenario: s, signers: signers, now: now, serial: map[string]uint64{}, says: map[string]string{}}
}

// Concerned lists the devices that must be given another policy, because of what the scenario says now.
func (j *Judge) Concerned() []string {
	var out []string
	for d, want := range j.scenario.Wanted() {
		if j.says[d] != want {
			out = append(out, d)
		}
	}
	slices.Sort(out)
	return out
}

// Take verifies deliveries as devices do, and returns everything that is wrong: a policy that is not the
// device's or not by the signer, an older one, one that says what the one before said, one more than was
// wanted, and none where one was wanted. what names the change, for the texts.
func (j *Judge) Take(what string, got map[string][]Delivery) []error {
	var wrong []error
	want := j.scenario.Wanted()
	concerned := map[string]bool{}
	for _, d := range j.Concerned() {
		concerned[d] = true
		if len(got[d]) == 0 {
			wrong = append(wrong, fmt.Errorf("%s: %s missed its policy", what, d))
		}
	}
	for d, list := range got {
		if !concerned[d] {
			wrong = append(wrong, fmt.Errorf("%s: %s is not concerned and was given %d policies", what, d, len(list)))
		} else if len(list) > 1 {
			wrong = append(wrong, fmt.Errorf("%s: %s was given %d policies for one change", what, d, len(list)))
		}
		for i := range list {
			if err := j.one(d, &list[i]); err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %w", what, err))
			}
		}
		if j.says[d] != want[d] {
			wrong = append(wrong, fmt.Errorf("%s: %s has a policy that says %q, wanted %q", what, d, j.says[d], want[d]))
		}
	}
	return wrong
}

func (j *Judge) one(device string, d *Delivery) error {
	doc, err := policy.Verify(d.Policy, policy.VerifyOptions{Anchors: j.signers, DeviceCertDER: j.scenario.keys[device].Cert.Raw, Now: j.now()})
	if err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	was, says := j.serial[device], Says(doc)
	if doc.Serial <= was {
		return fmt.Errorf("%s: serial %d after %d", device, doc.Serial, was)
	}
	if says == j.says[device] {
		return fmt.Errorf("%s: serial %d says what serial %d said", device, doc.Serial, was)
	}
	j.serial[device], j.says[device] = doc.Serial, says
	return nil
}
