package sp

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
	"wardgate/sp/compile"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
	"wardgate/sp/store"
)

// The kinds of work. All of them mean the same, to bring a device's policy up to date, and differ in
// what their Wanted counts.
const (
	jobRegistry = "policy"       // the registry's revision
	jobTime     = "policy-time"  // the time at which it was found to be due, in microseconds
	jobRenew    = "policy-renew" // the serial number of the policy that ends soon
)

var jobKinds = []string{jobRegistry, jobTime, jobRenew}

const (
	batch    = 256              // policies made in one go
	goes     = 8                // of one kind of work, before the next kind is looked at
	lease    = 30 * time.Second // after that long another instance takes over
	backdate = 5 * time.Minute  // of policies, for devices whose clock is behind
	tick     = time.Second      // how often the clock is looked at
	maxRetry = 5 * time.Minute
	// awayRetry is how soon a policy is tried again whose signer's key could not be used. A token that is
	// put back is told of by nobody.
	awayRetry = 3 * time.Second
	step      = time.Minute // how often files are looked at
)

// signer signs policies.
type signer struct {
	key   crypto.Signer
	chain []*x509.Certificate
}

// sign signs a document that was compiled and whose tests were run (compile.Input.Device): policy.Sign
// would read, compile and test it a second time, which is most of what a policy costs.
func (s *signer) sign(doc *policy.Document) ([]byte, error) {
	if !slices.ContainsFunc(s.chain[0].UnknownExtKeyUsage, certs.EKUPolicySigning.Equal) {
		return nil, fmt.Errorf("expected a signer's certificate with extendedKeyUsage %s, came %s; have it issued by the policy-signing CA", certs.EKUName(certs.EKUPolicySigning), certs.SubjectOf(s.chain[0]))
	}
	for _, c := range s.chain {
		if c.NotAfter.Before(doc.NotAfter) {
			// A device that restarts without reaching us must still be able to verify what it has.
			return nil, fmt.Errorf("expected a signer's certificate that lasts until the policy ends on %s, came %s, which ends on %s; renew it, or shorten [policy] life",
				doc.NotAfter.UTC().Format(time.RFC3339), certs.SubjectOf(c), c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	payload, err := json.MarshalIndent(doc, "", " ") // indented: devices report faults by line
	if err != nil {
		return nil, err
	}
	return policy.SignPayload(payload, s.key, s.chain)
}

// worker makes policies until its context ends.
type worker struct {
	*Centre
	signer signer
	wake   chan struct{} // one place: something may be waiting

	// Owned by the worker's goroutine.
	checked time.Time // up to when it was looked for memberships and contracts that begin or end
	epoch   string    // of the trust that policies were last asked for by
	looked  time.Time // when files were last looked at
	renewed time.Time // when it was last looked for policies that end soon
	seen    store.Revision
}

func (w *worker) run(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		if err := w.turn(ctx); err != nil && ctx.Err() == nil {
			w.log.Error("making policies failed, it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-t.C:
		}
	}
}

// turn queues what time makes necessary, and works until nothing is due.
func (w *worker) turn(ctx context.Context) error {
	if err := w.clock(ctx); err != nil {
		return err
	}
	for {
		n := 0
		for _, kind := range jobKinds {
			done, err := w.some(ctx, kind)
			if err != nil {
				return err
			}
			n += done
		}
		if n == 0 {
			return nil
		}
	}
}

// clock queues the devices whose policy may be another because of the time, because their policy ends
// soon, or because of what is trusted. Instances that queue the same lose nothing but work.
func (w *worker) clock(ctx context.Context) error {
	now := w.now()
	reg, rev, err := w.st.Current(ctx)
	if err != nil {
		return err
	}
	if rev != w.seen || now.Sub(w.looked) >= step || now.Before(w.looked) {
		w.load(reg, rev)
		w.seen, w.looked = rev, now
	}
	var due []string
	epoch := w.auth.current()
	if epoch != w.epoch {
		// Also when the instance starts: whatever changed meanwhile, also its configuration. Devices
		// for which nothing changes get nothing.
		for i := range reg.Devices() {
			due = append(due, reg.Devices()[i].Name)
		}
	} else {
		due = compile.Due(reg, w.checked, now)
	}
	jobs := make([]store.Job, 0, len(due))
	for _, d := range due {
		jobs = append(jobs, store.Job{Kind: jobTime, Item: d, Wanted: uint64(max(now.UnixMicro(), 1))})
	}
	if len(jobs) > 0 {
		if err := w.st.Enqueue(ctx, jobs, now); err != nil {
			return err
		}
	}
	w.checked, w.epoch = now, epoch
	return w.renew(ctx, reg, now)
}

// renew queues, once in a while, the devices whose policies have lived half of their lives; the other
// half is left for an outage of the centre. It looks through all of them: policies of devices that are
// revoked or gone are renewed by nobody, and stay the first to end.
func (w *worker) renew(ctx context.Context, reg *registry.Registry, now time.Time) error {
	if !w.renewed.IsZero() && now.Sub(w.renewed) < step && !now.Before(w.renewed) {
		return nil
	}
	var after store.PolicyHead
	for {
		ending, err := w.st.PoliciesExpiring(ctx, now.Add(time.Duration(w.cfg.Policy.Life)/2), after, 0)
		if err != nil {
			return err
		}
		if len(ending) == 0 {
			w.renewed = now
			return nil
		}
		var jobs []store.Job
		for _, h := range ending {
			if d := reg.Device(h.Device); d != nil && d.State != registry.Revoked {
				jobs = append(jobs, store.Job{Kind: jobRenew, Item: h.Device, Wanted: h.Serial})
			}
		}
		if len(jobs) > 0 {
			if err := w.st.Enqueue(ctx, jobs, now); err != nil {
				return err
			}
		}
		after = ending[len(ending)-1]
	}
}

// some does work of one kind, and says how much: at most a few goes, so that the other kinds have their
// turn. While the policies of one go are stored, those of the next are made.
func (w *worker) some(ctx context.Context, kind string) (n int, err error) {
	var storing sync.WaitGroup
	defer storing.Wait()
	for range goes {
		q, err := w.st.Queue(ctx, kind)
		if err != nil || q.Next.IsZero() || q.Next.After(w.now()) {
			return n, err
		}
		claims, err := w.st.Claim(ctx, kind, w.name, batch, lease, w.now())
		if err != nil || len(claims) == 0 {
			return n, err
		}
		n += len(claims)
		made, err := w.make(ctx, claims)
		if err != nil {
			for i := range claims {
				w.giveBack(ctx, &claims[i], err)
			}
			return n, err
		}
		storing.Wait()
		storing.Go(func() { w.put(ctx, made) })
		// While the signer's key is away there is no sense in going on at once.
		if i := slices.IndexFunc(made, func(o outcome) bool { return errors.Is(o.err, issue.ErrUnavailable) }); i >= 0 {
			return n, made[i].err
		}
	}
	return n, nil
}

// outcome is what became of one claim: a policy, nothing to do, or an error.
type outcome struct {
	claim  store.Claim
	policy *store.Policy
	err    error
}

// make brings the policies of claimed devices up to date, as far as that is done without storing them.
func (w *worker) make(ctx context.Context, claims []store.Claim) ([]outcome, error) {
	now := w.now()
	reg, rev, err := w.st.Current(ctx)
	if err != nil {
		return nil, err
	}
	w.load(reg, rev)
	devices := make([]string, len(claims))
	for i := range claims {
		devices[i] = claims[i].Item
	}
	// Certificates first, so that the lists in the policies name them.
	if err := w.endCertificates(ctx, reg, devices, now); err != nil {
		return nil, err
	}
	trust, err := w.auth.forPolicies(ctx, now)
	if err != nil {
		return nil, err
	}
	heads, err := w.st.HeadsOf(ctx, devices)
	if err != nil {
		return nil, err
	}
	in := &compile.Input{Registry: reg, Trust: trust.Trust, Issuer: w.cfg.Issuer, Now: now}
	out := make([]outcome, len(claims))
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(runtime.GOMAXPROCS(0), len(claims)) {
		wg.Go(func() {
			for i := range next {
				out[i].claim = claims[i]
				out[i].policy, out[i].err = w.one(in, trust, claims[i].Item, rev, heads[claims[i].Item])
			}
		})
	}
	for i := range claims {
		next <- i
	}
	close(next)
	wg.Wait()
	return out, nil
}

// put stores what was made, with the end of the work.
func (w *worker) put(ctx context.Context, made []outcome) {
	var good []store.Claim
	var policies []store.Policy
	for i := range made {
		if made[i].err != nil {
			w.giveBack(ctx, &made[i].claim, made[i].err)
			continue
		}
		good = append(good, made[i].claim)
		if made[i].policy != nil {
			policies = append(policies, *made[i].policy)
		}
	}
	if len(good) == 0 {
		return
	}
	if _, err := w.st.PutPolicies(ctx, w.name, policies, good, w.now()); err == nil {
		w.log.Info("policies", "made", len(policies), "looked at", len(good))
		return
	}
	// One of them may be the reason: another instance was faster, or they are too large together.
	for i := range made {
		if made[i].err != nil {
			continue
		}
		var own []store.Policy
		if made[i].policy != nil {
			own = []store.Policy{*made[i].policy}
		}
		if _, err := w.st.PutPolicies(ctx, w.name, own, []store.Claim{made[i].claim}, w.now()); err != nil {
			w.giveBack(ctx, &made[i].claim, err)
		}
	}
}

// giveBack lets work be tried again, later each time.
func (w *worker) giveBack(ctx context.Context, c *store.Claim, why error) {
	wait := time.Duration(0)
	switch {
	case errors.Is(why, store.ErrTooOld): // another kind of work made a policy meanwhile: look again at once
	case errors.Is(why, issue.ErrUnavailable): // told once for all of them, by whoever called
		wait = awayRetry
	default:
		wait = min(time.Second<<min(c.Attempts, 16), maxRetry)
		w.log.Error("no policy for a device", "device", c.Item, "attempts", c.Attempts, "error", why)
	}
	if err := w.st.Fail(ctx, *c, why.Error(), w.now().Add(wait)); err != nil && !errors.Is(err, store.ErrLeaseLost) && ctx.Err() == nil {
		w.log.Error("work cannot be given back; it is free when its lease ends", "device", c.Item, "error", err)
	}
}

// endCertificates revokes what devices have no right to any more. It is done by whoever makes the policies
// that follow from the change, so that no crash comes between.
func (w *worker) endCertificates(ctx context.Context, reg *registry.Registry, devices []string, now time.Time) error {
	list, err := w.st.CertificatesInUse(ctx, devices, now)
	if err != nil {
		return err
	}
	for i := range list {
		k := &list[i]
		gone, why := leftService(reg, k.Device, k.Service, now)
		if !gone {
			continue
		}
		if _, err := w.st.Revoke(ctx, store.Revocation{Service: k.Service, Issuer: k.Issuer, Serial: k.Serial, Reason: why, Who: "centre", Why: "the registry has it no longer"}, now); err != nil {
			return err
		}
	}
	return nil
}

// one makes a device's policy; nil: the one that it has, head, is the one that it needs.
func (w *worker) one(in *compile.Input, trust *trusted, device string, rev store.Revision, head store.PolicyHead) (*store.Policy, error) {
	p, err := in.Device(device)
	if errors.Is(err, compile.ErrNoDevice) || errors.Is(err, compile.ErrRevoked) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	content, err := trust.contentOf(p)
	if err != nil {
		return nil, err
	}
	life := time.Duration(w.cfg.Policy.Life)
	if head.Serial > 0 && head.Content == content && !head.NotAfter.Before(in.Now.Add(life/2)) {
		return nil, nil
	}
	// The time in the serial number keeps it growing also when the database is one from before a
	// disaster: devices refuse what is older than what they have.
	serial := max(head.Serial+1, uint64(max(in.Now.Unix(), 1)))
	doc := p.Document(serial, in.Now.Add(-backdate).Truncate(time.Second), in.Now.Add(life).Truncate(time.Second))
	jws, err := w.signer.sign(doc)
	if err != nil {
		return nil, fmt.Errorf("policy of %s: %w", device, err)
	}
	return &store.Policy{
		PolicyHead: store.PolicyHead{Device: device, Serial: serial, Content: content, Revision: rev, Created: in.Now, NotAfter: doc.NotAfter},
		Signer:     certs.SubjectOf(w.signer.chain[0]), JWS: jws,
	}, nil
}
