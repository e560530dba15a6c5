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
	"wardgate/router/addresswatch"
	"wardgate/router/control"
)

// The prefixes of remote facilities stay remote when the last contract about them has ended: hosts that
// still send to a former partner's addresses must not have their packets go out in the clear by the
// default route (ZONE-8). The kernel keeps refusing them until the operator says otherwise: by taking
// the line out of the file, and `systemctl reload wardgated`.
const (
	formerRemotesFile = "remotes.json"      // every remote prefix that a policy ever named, the latest last
	formerRemotesCopy = "remotes.json.copy" // the same, for when the file is damaged
	maxFormerRemotes  = 4096                // of which the kernel is told; the oldest are forgotten
)

// readRemotes returns what a file has, nil where there is none. One that cannot be read is an error, and no reason to forget.
func readRemotes(path string) ([]netip.Prefix, error) {
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
	b = append(b, '\n')
	if err := writeFile(filepath.Join(dir, formerRemotesFile), b, 0o600); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, formerRemotesCopy), b, 0o600)
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

// Codes of the status.
const (
	codeRemotesDamaged = "former-partners-damaged"
	codeRemotesGuessed = "former-partners-guessed"
)

// private are the networks that facilities number their hosts from (RFC 1918, RFC 6598, RFC 4193).
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fc00::/7"),
}

// formerRemotes adds the former remote prefixes to those of a policy, and remembers these. Where the file is
// damaged its copy counts, and where that is, too, what the kernel still has of an earlier process. After a
// restart of the machine it has nothing: then all private addresses that are not this machine's own are
// treated as former partners', because one of them may be. Which of these it is says the status, until
// somebody mends the file.
func (r *Router) formerRemotes(remotes, local []netip.Prefix) []netip.Prefix {
	dir := r.cfg.Daemon.StateDir
	known, err := readRemotes(filepath.Join(dir, formerRemotesFile))
	if err != nil {
		return r.damagedRemotes(err, remotes, local)
	}
	r.setRemotesError(nil)
	copied, err := readRemotes(filepath.Join(dir, formerRemotesCopy))
	tell, all := withFormer(known, remotes, local)
	if err != nil || !slices.Equal(all, known) || !slices.Equal(all, copied) {
		if err := writeRemotes(dir, all); err != nil {
			r.log.Error("partners' addresses cannot be remembered", zap.Error(err))
		}
	}
	return tell
}

// damagedRemotes is formerRemotes where the file cannot be read: err says why. The file stays as it is.
func (r *Router) damagedRemotes(err error, remotes, local []netip.Prefix) []netip.Prefix {
	e := &control.Error{
		Kind: control.KindInternal, Code: codeRemotesDamaged, Title: "The file with former partners' addresses is damaged", Detail: err.Error(),
		Hint: "mend the file or bring it back from a backup, or remove it to forget former partners' addresses; then: systemctl reload wardgated",
	}
	lost := r.remotesLost()
	known, copyErr := readRemotes(filepath.Join(r.cfg.Daemon.StateDir, formerRemotesCopy))
	var held []netip.Prefix
	if copied := copyErr == nil && known != nil; !copied {
		known = nil
		held = r.heldRemotes()
	}
	switch {
	case known != nil:
		e.Detail += "; its copy is used"
	case len(held) > 0 && !lost:
		known = held
		e.Detail += "; what the kernel still refuses is refused further"
	default:
		e.Code, e.Title = codeRemotesGuessed, "The addresses of former partners are not known any more"
		e.Detail += "; all private addresses that are not this router's own are refused, as if they were former partners'"
		r.setRemotesError(e)
		r.log.Error(e.Title, zap.String("detail", e.Detail), zap.String("hint", e.Hint))
		return append(slices.Clone(remotes), without(private, slices.Concat(local, r.connected()))...)
	}
	r.setRemotesError(e)
	r.log.Error(e.Title, zap.String("detail", e.Detail), zap.String("hint", e.Hint))
	tell, _ := withFormer(known, remotes, local)
	return tell
}

// heldRemotes are the prefixes that the kernel was told of, also by an earlier process.
func (r *Router) heldRemotes() []netip.Prefix {
	if r.kern == nil {
		return nil
	}
	held, err := r.kern.Held()
	if err != nil {
		r.log.Error("the kernel's routes cannot be read", zap.Error(err))
	}
	return held
}

// connected are the networks that this machine is in.
func (r *Router) connected() []netip.Prefix {
	list, err := addresswatch.Connected()
	if err != nil {
		r.log.Warn("this machine's own networks are not known, and may be cut off", zap.Error(err))
	}
	return list
}

// setRemotesError keeps what the status says of former partners' addresses; nil: all is well.
func (r *Router) setRemotesError(e *control.Error) {
	r.mu.Lock()
	r.remotesErr = e
	r.mu.Unlock()
}

// remotesLost tells whether what the kernel has is a guess of ours.
func (r *Router) remotesLost() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.remotesErr != nil && r.remotesErr.Code == codeRemotesGuessed
}

// without returns what is left of networks when others are taken out of them.
func without(from, out []netip.Prefix) []netip.Prefix {
	var left []netip.Prefix
	for _, p := range from {
		var inside []netip.Prefix
		gone := false
		for _, o := range out {
			if !p.Overlaps(o) {
				continue
			}
			if gone = o.Bits() <= p.Bits(); gone {
				break
			}
			inside = append(inside, o)
		}
		switch {
		case gone:
		case len(inside) == 0:
			left = append(left, p)
		default:
			left = append(left, without(halves(p), inside)...)
		}
	}
	return left
}

// halves cuts a network of more than one address in two.
func halves(p netip.Prefix) []netip.Prefix {
	upper := p.Addr().AsSlice()
	upper[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(upper)
	return []netip.Prefix{netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(a, p.Bits()+1)}
}
