package lab

import (
	"context"
	_ "embed" // guest-init.sh
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Guest is a User-Mode-Linux kernel (Debian's package user-mode-linux) as a process: for peers that
// leave ESP to the kernel, on machines whose kernel has none, or not all of it. It boots in two
// seconds from the machine's own root file system, which it can only read, and is one network card,
// vec0, at the other end of a TAP device in a namespace of the lab.
type Guest struct {
	Name string
	Dir  string // the only folder of the machine that the guest can write to, under the same path
	p    *Process
	jobs atomic.Uint32
}

//go:embed guest-init.sh
var guestInit []byte

// guestKernel is the kernel's program.
const guestKernel = "/usr/bin/linux"

// GuestMissing tells what this machine lacks for guests, or nil.
func GuestMissing() error {
	for _, f := range []string{guestKernel, "/dev/net/tun", "/sbin/modprobe"} {
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("guests need %s: install Debian's user-mode-linux and kmod: %w", f, err)
		}
	}
	return nil
}

// Guest boots a guest with so many MB of memory; its card is the TAP device that is made in n under a
// name, and set up. It ends with the lab.
func (l *Lab) Guest(ctx context.Context, n *Netns, name, tap string, megabytes int) (*Guest, error) {
	if err := GuestMissing(); err != nil {
		return nil, err
	}
	version, err := exec.CommandContext(ctx, guestKernel, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --version: %w", guestKernel, err)
	}
	release := strings.TrimSpace(string(version))
	g := &Guest{Name: name, Dir: l.Path("guest-" + name)}
	// The modules of this kernel do not lie where modprobe looks for them.
	modules := g.path("modules", "lib", "modules")
	for _, d := range []string{g.path("jobs"), g.path("bin"), modules} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Symlink("/usr/lib/uml/modules/"+release, filepath.Join(modules, release)); err != nil {
		return nil, err
	}
	for file, text := range map[string]string{
		"guest-init.sh": string(guestInit),
		"init":          "#!/bin/bash\nexec " + g.path("guest-init.sh") + " " + g.Dir + "\n",
		"bin/modprobe":  "#!/bin/sh\nexec /sbin/modprobe -d " + g.path("modules") + " \"$@\"\n",
	} {
		if err := os.WriteFile(g.path(file), []byte(text), 0o755); err != nil { //nolint:gosec // programs, for the guest's root
			return nil, err
		}
	}
	if err := errors.Join(n.IP("tuntap", "add", tap, "mode", "tap"), n.IP("link", "set", tap, "up")); err != nil {
		return nil, err
	}
	// The kernel starts helpers, which outlive it wherever they can: in a PID namespace all end with its
	// PID 1. That is a shell, since the kernel, as PID 1, could not power itself off.
	g.p, err = l.start(n, "guest-"+name, []string{"HOME=" + g.Dir}, unix.CLONE_NEWPID,
		"sh", "-c", `trap "exit 0" TERM; "$@" & wait $!`, "guest", guestKernel,
		"mem="+strconv.Itoa(megabytes)+"M", "umid="+name, "uml_dir="+g.Dir+"/",
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init="+g.path("init"),
		"vec0:transport=tap,ifname="+tap+",depth=128,gro=1", "con=null", "con0=null,fd:1", "quiet", "panic=-1")
	if err != nil {
		return nil, err
	}
	return g, WaitFor(ctx, "guest "+name+" to boot", time.Minute, func() error {
		if err := g.p.Running(); err != nil {
			return err
		}
		_, err := os.Stat(g.path("ready"))
		return err
	})
}

func (g *Guest) path(elem ...string) string {
	return filepath.Join(append([]string{g.Dir}, elem...)...)
}

// WriteFile hands the guest a file, which lies in [Guest.Dir], and returns its path.
func (g *Guest) WriteFile(name, text string) (string, error) {
	return g.path(name), os.WriteFile(g.path(name), []byte(text), 0o600)
}

// Run has bash run a script in the guest and returns what it printed on both outputs. Scripts run one
// after the other, whoever calls; what a script leaves behind in the background must not keep its
// outputs open.
func (g *Guest) Run(ctx context.Context, script string) (string, error) {
	base := g.path("jobs", fmt.Sprintf("%06d", g.jobs.Add(1)))
	if err := os.WriteFile(base+".new", []byte(script+"\n"), 0o600); err != nil {
		return "", err
	}
	if err := os.Rename(base+".new", base+".sh"); err != nil {
		return "", err
	}
	var status []byte
	err := WaitFor(ctx, fmt.Sprintf("guest %s to have run %q", g.Name, script), 2*time.Minute, func() (err error) {
		if err := g.p.Running(); err != nil {
			return err
		}
		status, err = os.ReadFile(base + ".rc")
		return err
	})
	out, _ := os.ReadFile(base + ".out") // there is none when the script did not begin
	if err != nil {
		return string(out), err
	}
	if s := strings.TrimSpace(string(status)); s != "0" {
		return string(out), fmt.Errorf("guest %s: %q: exit status %s: %s", g.Name, script, s, lastLine(string(out)))
	}
	return string(out), nil
}

// LoadModules loads what a peer and its ESP need, and then has the kernel look for no more modules: every
// algorithm that is asked for and not there would cost a process, and seconds with PF_KEY.
func (g *Guest) LoadModules(ctx context.Context) error {
	_, err := g.Run(ctx, `modprobe -a esp4 esp6 xfrm_user af_key authenc authencesn echainiv seqiv gcm ghash-generic ctr cbc cmac hmac sha512_generic chacha20poly1305 chacha_generic poly1305_generic jitterentropy_rng drbg ansi_cprng overlay &&
echo >/proc/sys/kernel/modprobe`)
	return err
}

// Halt shuts the guest down, and kills its process where that takes more than a grace.
func (g *Guest) Halt(grace time.Duration) error {
	if err := os.WriteFile(g.path("halt"), nil, 0o600); err != nil {
		return err
	}
	select {
	case <-g.p.Done():
		return nil
	case <-time.After(grace):
		g.p.Kill()
		return fmt.Errorf("guest %s did not halt within %v and was killed", g.Name, grace)
	}
}
