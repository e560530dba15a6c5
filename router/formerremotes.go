package router

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"go.uber.org/zap"

	"wardgate/policy"
)

// The prefixes of remote facilities stay remote when the last contract about them has ended: hosts that
// still send to a former partner's addresses must not have their packets go out in the clear by the
// default route (ZONE-8). The kernel keeps refusing them until the operator says otherwise: by taking
// the line out of the file, and `systemctl reload wardgated`.
const (
	formerRemotesFile = "remotes.json" // every remote prefix that a policy ever named, the latest last
	maxFormerRemotes  = 4096           // of which the kernel is told; the oldest are forgotten
)

// readRemotes returns what the file has. A file that cannot be read is an error, and no reason to forget.
func readRemotes(dir string) ([]netip.Prefix, error) {
	path := filepath.Join(dir, formerRemotesFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var texts []string
	if err == nil {
		err = json.Unmarshal(b, &texts)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: expected a JSON list of prefixes, came %w; mend it, or remove it to forget former partners' addresses", path, err)
	}
	out := make([]netip.Prefix, 0, len(texts))
	for i, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s: entry %d: expected a prefix such as \"10.2.1.0/24\", came %.80q; mend it", path, i+1, s)
		}
		out = append(out, p)
	}
	return out, nil
}

func writeRemotes(dir string, list []netip.Prefix) error {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.String()
	}
	b, err := json.MarshalIndent(texts, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, formerRemotesFile), append(b, '\n'), 0o600)
}

// withFormer returns the prefixes that the kernel is to treat as remote: those of the policy, and the
// former ones that no zone of the policy has taken. all is what is to be remembered.
func withFormer(known, remotes, local []netip.Prefix) (tell, all []netip.Prefix) {
	all = slices.DeleteFunc(slices.Clone(known), func(p netip.Prefix) bool { return slices.Contains(remotes, p) })
	seen := make(map[netip.Prefix]bool, len(remotes))
	for _, p := range remotes {
		if !seen[p] {
			seen[p] = true
			all = append(all, p)
		}
	}
	if n := len(all) - max(maxFormerRemotes, len(seen)); n > 0 {
		all = all[n:]
	}
	tell = slices.Clone(remotes)
	for _, p := range all {
		mine := slices.ContainsFunc(local, func(z netip.Prefix) bool { return z.Overlaps(p) })
		if !mine && !seen[p] {
			tell = append(tell, p)
		}
	}
	return tell, all
}

// reapplyKernel tells the kernel again what it was told, because the file may say something else now.
func (r *Router) reapplyKernel(t *policy.Table) error {
	r.installMu.Lock()
	defer r.installMu.Unlock()
	return r.applyKernel(t)
}

// formerRemotes adds the former remote prefixes to those of a policy, and remembers these. Where the file
// cannot be read or written the policy's own are returned, and it is said loudly.
func (r *Router) formerRemotes(remotes, local []netip.Prefix) []netip.Prefix {
	dir := r.cfg.Daemon.StateDir
	known, err := readRemotes(dir)
	if err != nil {
		r.log.Error("former partners' addresses are not known: packets to them may leave in the clear", zap.Error(err))
		return remotes
	}
	tell, all := withFormer(known, remotes, local)
	if !slices.Equal(all, known) {
		if err := writeRemotes(dir, all); err != nil {
			r.log.Error("partners' addresses cannot be remembered", zap.Error(err))
		}
	}
	return tell
}
