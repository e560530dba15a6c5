package router

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/internal/certs"
	"wardgate/policy"
	"wardgate/router/control"
	"wardgate/router/kernel"
)

// Files in the state directory beside the policy file itself.
const (
	installedFile  = "policy-installed.json" // policy.Installed: the serial never goes back
	deviceCertFile = "device.der"            // the device certificate, to check the policy while the token is away
)

// policyStore keeps the policy in force across restarts. The policy file is written before the
// note of its serial: after a crash between the two the file is newer than the note, and the
// note is mended; never the reverse.
type policyStore struct {
	file, dir string
}

func (s policyStore) installed() (policy.Installed, error) {
	var in policy.Installed
	b, err := os.ReadFile(filepath.Join(s.dir, installedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return in, nil
	}
	if err != nil {
		return in, err
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return in, fmt.Errorf("%s: expected the serial and digest of the last policy, came %w; restore the file from a backup, or have the service provider confirm the serial before you remove it", filepath.Join(s.dir, installedFile), err)
	}
	return in, nil
}

func (s policyStore) save(jws []byte, in policy.Installed) error {
	if err := writeFile(s.file, jws, 0o600); err != nil {
		return err
	}
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(s.dir, installedFile), append(b, '\n'), 0o600)
}

// writeFile replaces the file at path in one step that survives a power loss: temporary file,
// sync, rename, sync of the folder.
func writeFile(path string, b []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err2 := os.Open(dir)
	if err2 != nil {
		return nil //nolint:nilerr // the file is in place; the folder is synced with the next change
	}
	defer d.Close()
	_ = d.Sync() // not every file system can
	return nil
}

// loadAnchors reads the certificates that policy signers chain to, and the revocation lists for
// them.
func (r *Router) loadAnchors() error {
	var anchors []*x509.Certificate
	for _, f := range r.cfg.Policy.Anchors {
		b, err := os.ReadFile(f)
		if err != nil {
			return fmt.Errorf("[policy] anchors: %w", err)
		}
		c, err := certs.ParseCertificates(b)
		if err != nil {
			return fmt.Errorf("[policy] anchors: %s: %w", f, err)
		}
		anchors = append(anchors, c...)
	}
	var crls []*x509.RevocationList
	for _, f := range r.cfg.Policy.CRLs {
		b, err := os.ReadFile(f)
		if err != nil {
			return fmt.Errorf("[policy] crls: %w", err)
		}
		c, err := certs.ParseCRLs(b)
		if err != nil {
			return fmt.Errorf("[policy] crls: %s: %w", f, err)
		}
		crls = append(crls, c...)
	}
	r.mu.Lock()
	r.anchors, r.anchorCRLs = anchors, crls
	r.mu.Unlock()
	return nil
}

// deviceCert returns the DER of the device certificate: the token's, or while the token is away
// the one that was on it last.
func (r *Router) deviceCert() ([]byte, error) {
	r.mu.Lock()
	der := r.deviceDER
	r.mu.Unlock()
	if der != nil {
		return der, nil
	}
	der, err := os.ReadFile(filepath.Join(r.cfg.Daemon.StateDir, deviceCertFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &control.Error{
			Kind: control.KindToken, Code: "device-certificate-unknown", Title: "The device certificate is not known",
			Detail: "a policy is signed for one device; expected a token with the device certificate, " + r.tokenText(),
			Hint:   "insert the token and check it with: wardgate token check",
		}
	}
	return der, err
}

// checkPolicy does everything but installing.
func (r *Router) checkPolicy(jws []byte) (*policy.Document, error) {
	der, err := r.deviceCert()
	if err != nil {
		return nil, err
	}
	installed, err := r.store.installed()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	opt := policy.VerifyOptions{Anchors: r.anchors, CRLs: r.anchorCRLs, DeviceCertDER: der, Installed: installed, Now: time.Now()}
	r.mu.Unlock()
	return policy.Verify(jws, opt)
}

// installPolicy checks a policy file and puts it in force. When it returns an error nothing has
// changed. by is who brought it.
func (r *Router) installPolicy(jws []byte, by string) (*policy.Document, policy.Changes, error) {
	r.installMu.Lock()
	defer r.installMu.Unlock()
	doc, err := r.checkPolicy(jws)
	if err != nil {
		r.refusePolicy(err, by)
		return nil, policy.Changes{}, err
	}
	table := doc.Table()
	changes := table.Diff(r.table())
	if r.inForce(doc) {
		return doc, changes, nil
	}
	if err := r.applyKernel(table); err != nil {
		err = fmt.Errorf("the kernel does not take the routes and filters of this policy, the one before stays in force: %w", err)
		r.refusePolicy(err, by)
		return nil, changes, err
	}
	if err := r.store.save(jws, policy.Installed{Serial: doc.Serial, Digest: doc.Digest()}); err != nil {
		err = fmt.Errorf("the policy cannot be stored, the one before stays in force: %w", err)
		if old := r.table(); old != nil {
			err = errors.Join(err, r.applyKernel(old))
		}
		r.refusePolicy(err, by)
		return nil, changes, err
	}
	if der, err := r.deviceCert(); err == nil {
		if err := writeFile(filepath.Join(r.cfg.Daemon.StateDir, deviceCertFile), der, 0o600); err != nil {
			r.log.Warn("cannot keep a copy of the device certificate", zap.Error(err))
		}
	}
	r.enforce(doc, time.Now())
	r.log.Info("policy installed", zap.Uint64("serial", doc.Serial), zap.String("issuer", doc.Issuer), zap.String("by", by),
		zap.Strings("added", changes.Added), zap.Strings("removed", changes.Removed), zap.Int("changed", len(changes.Changed)))
	r.record(audit.Record{
		Event: audit.EventPolicyInstalled, Who: by, What: fmt.Sprintf("serial %d of %s", doc.Serial, doc.Issuer), Result: audit.ResultOK,
		Detail: map[string]string{
			"digest": doc.Digest().String(), "not_after": doc.NotAfter.UTC().Format(time.RFC3339),
			"added": fmt.Sprint(changes.Added), "removed": fmt.Sprint(changes.Removed), "changed": fmt.Sprint(changedNames(changes)),
		},
	})
	return doc, changes, nil
}

// inForce reports whether doc is the very policy that is in force.
func (r *Router) inForce(doc *policy.Document) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.doc != nil && r.doc.Serial == doc.Serial && r.doc.Digest() == doc.Digest()
}

func (r *Router) refusePolicy(err error, by string) {
	r.log.Warn("policy refused", zap.String("by", by), zap.String("code", policy.Code(err)), zap.Error(err))
	r.record(audit.Record{
		Event: audit.EventPolicyRefused, Who: by, What: policy.Code(err), Result: audit.ResultRefused,
		Detail: map[string]string{"error": err.Error()},
	})
}

// loadPolicy puts the stored policy in force at start. Whatever is wrong with it, the kernel is
// told to let nothing pass in the clear that it names.
func (r *Router) loadPolicy() {
	r.installMu.Lock()
	defer r.installMu.Unlock()
	jws, err := os.ReadFile(r.store.file)
	if errors.Is(err, fs.ErrNotExist) {
		e := &control.Error{
			Kind: control.KindUnavailable, Code: "no-policy", Title: "No policy is installed",
			Hint: "install the file that the service provider signed for this device: wardgate policy install FILE",
		}
		if r.centre != nil {
			e.Hint = "it comes from the service provider's centre: wardgate join URL"
		}
		r.setPolicyError(e)
		r.lockdown()
		return
	}
	var doc *policy.Document
	if err == nil {
		doc, err = r.checkPolicy(jws)
	}
	if err != nil {
		r.refusePolicy(err, "stored policy")
		r.setPolicyError(r.controlError(err))
		// An expired policy still says which addresses must not be reached in the clear.
		if old := r.verifyExpired(jws); old != nil && r.applyKernel(old.Table()) == nil {
			return
		}
		r.lockdown()
		return
	}
	if err := r.applyKernel(doc.Table()); err != nil {
		r.log.Error("the kernel does not take the policy's routes and filters", zap.Error(err))
		r.setPolicyError(r.controlError(err))
		r.lockdown()
		return
	}
	if in, err := r.store.installed(); err == nil && in.Serial < doc.Serial {
		if err := r.store.save(jws, policy.Installed{Serial: doc.Serial, Digest: doc.Digest()}); err != nil {
			r.log.Warn("cannot note the policy's serial", zap.Error(err))
		}
	}
	at := time.Now()
	if st, err := os.Stat(r.store.file); err == nil {
		at = st.ModTime()
	}
	r.enforce(doc, at)
	r.log.Info("policy in force", zap.Uint64("serial", doc.Serial), zap.String("issuer", doc.Issuer), zap.Time("not_after", doc.NotAfter))
}

// verifyExpired checks all of a stored policy but that it is still valid.
func (r *Router) verifyExpired(jws []byte) *policy.Document {
	doc, _, err := policy.Inspect(jws)
	if err != nil {
		return nil
	}
	der, err := r.deviceCert()
	if err != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	doc, err = policy.Verify(jws, policy.VerifyOptions{Anchors: r.anchors, CRLs: r.anchorCRLs, DeviceCertDER: der, Now: doc.NotAfter.Add(-time.Second)})
	if err != nil {
		return nil
	}
	return doc
}

func (r *Router) lockdown() {
	if err := r.kern.Lockdown(); err != nil {
		r.log.Error("cannot shut the ways between zones and tunnels in the kernel", zap.Error(err))
	}
}

// applyKernel tells the kernel the routes and filters of table.
func (r *Router) applyKernel(table *policy.Table) error {
	view := table.Kernel()
	st := kernel.State{TunName: r.tunName, MTU: r.mtu, UDPPorts: []uint16{r.cfg.Network.IKEPort, r.cfg.Network.NATTPort}}
	for _, z := range view.Zones {
		st.Zones = append(st.Zones, kernel.Zone{Name: z.Name, Prefixes: z.Prefixes, Interfaces: z.Interfaces})
	}
	var local []netip.Prefix
	for _, z := range view.Zones {
		local = append(local, z.Prefixes...)
	}
	for _, rem := range view.Remotes {
		st.Remotes = append(st.Remotes, rem.Prefixes...)
	}
	st.Remotes = r.formerRemotes(st.Remotes, local)
	for _, c := range table.Connections() {
		for _, g := range c.Gateways {
			st.Gateways = append(st.Gateways, g.Addr())
		}
	}
	return r.kern.Apply(st)
}

// enforce makes doc the policy in force: swaps the data path's rules, then tells IKE, which ends
// what lost its right.
func (r *Router) enforce(doc *policy.Document, at time.Time) {
	table := doc.Table()
	infos := table.Connections()
	now := time.Now()
	lim := heldLimits{r.cfg.Limits.HeldPackets, r.cfg.Limits.HeldBytes, r.cfg.Limits.HeldFor}

	r.mu.Lock()
	rs := &ruleset{gen: r.dp.rules.Load().gen + 1, table: table, index: make(map[*connection]int, len(infos))}
	conns := make(map[string]*connection, len(infos))
	for i := range infos {
		in := &infos[i]
		c := r.conns[in.Name]
		if c == nil {
			c = newConnection(in.Name, lim, r.dp.shards(), now)
		}
		c.spec.Store(&connSpec{
			peer: in.Peer, service: in.Service, serviceID: in.ServiceID, start: in.Start, idle: in.Idle,
			local: in.Local, remote: in.Remote, gateways: in.Gateways,
		})
		conns[in.Name] = c
		rs.conns = append(rs.conns, c)
		rs.index[c] = i
	}
	for name, c := range r.conns {
		if conns[name] == nil {
			c.mu.Lock()
			c.block("the policy no longer names it", now)
			c.takeHeld()
			c.mu.Unlock()
		}
	}
	r.conns, r.doc, r.policyAt, r.policyErr = conns, doc, at, nil
	r.dp.rules.Store(rs)
	r.mu.Unlock()
	r.tellAddresses() // which interfaces are of zones has changed, perhaps
	r.setPeers()
}

// expirePolicy takes the policy out of force when its time is over (SP-5). The kernel keeps its
// routes and filters, so nothing leaves in the clear.
func (r *Router) expirePolicy() {
	r.mu.Lock()
	doc := r.doc
	if doc == nil {
		r.mu.Unlock()
		return
	}
	r.doc = nil
	old := r.dp.rules.Load()
	r.dp.rules.Store(&ruleset{gen: old.gen + 1, conns: old.conns, index: old.index})
	r.policyErr = &control.Error{
		Kind: control.KindRefused, Code: "policy-expired", Title: "The policy has expired",
		Detail: fmt.Sprintf("serial %d of %s was valid until %s; all connections are down", doc.Serial, doc.Issuer, doc.NotAfter.UTC().Format(time.RFC3339)),
		Hint:   "install a newer policy file from the service provider: wardgate policy install FILE",
	}
	r.mu.Unlock()
	r.log.Error("policy expired, all connections end", zap.Uint64("serial", doc.Serial), zap.Time("not_after", doc.NotAfter))
	r.record(audit.Record{
		Event: audit.EventPolicyExpired, What: fmt.Sprintf("serial %d of %s", doc.Serial, doc.Issuer), Result: audit.ResultRefused,
		Detail: map[string]string{"not_after": doc.NotAfter.UTC().Format(time.RFC3339)},
	})
	r.setPeers()
}

func (r *Router) setPolicyError(e *control.Error) {
	r.mu.Lock()
	r.policyErr = e
	r.mu.Unlock()
}

func changedNames(c policy.Changes) []string {
	var s []string
	for _, x := range c.Changed {
		s = append(s, x.Name)
	}
	return s
}

// PolicyCheck implements control.Backend.
func (r *Router) PolicyCheck(_ context.Context, jws []byte) (*control.PolicyReport, error) {
	doc, err := r.checkPolicy(jws)
	if err != nil {
		return nil, r.controlError(err)
	}
	return policyReport(doc, doc.Table().Diff(r.table())), nil
}

// PolicyInstall implements control.Backend.
func (r *Router) PolicyInstall(ctx context.Context, jws []byte) (*control.PolicyReport, error) {
	doc, changes, err := r.installPolicy(jws, operator(ctx))
	if err != nil {
		return nil, r.controlError(err)
	}
	r.centre.wake()
	rep := policyReport(doc, changes)
	rep.Installed = true
	return rep, nil
}

func policyReport(doc *policy.Document, c policy.Changes) *control.PolicyReport {
	return &control.PolicyReport{
		Issuer: doc.Issuer, Device: doc.Device.ID, Serial: doc.Serial, NotBefore: doc.NotBefore, NotAfter: doc.NotAfter,
		Connections: len(doc.Connections), Flows: len(doc.Table().Rules()), Tests: len(doc.Tests),
		Added: c.Added, Removed: c.Removed, Changed: changedNames(c),
	}
}
