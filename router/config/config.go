// Package config reads the daemon's configuration file, /etc/wardgate/wardgated.toml.
//
// The file is read once, checked as a whole, and then never changes: a *Config is shared by all
// goroutines and must not be written to. An unknown key, a key of the wrong type or a value out
// of range is an error that names line, column, key, what was expected and, for a misspelt key,
// the nearest one that exists. Every key has a default except [token] module and label and
// [policy] anchors; docs/wardgated.toml lists and explains them all.
package config

import (
	"net/netip"
	"time"
)

// DefaultPath is where the daemon looks for its configuration.
const DefaultPath = "/etc/wardgate/wardgated.toml"

// Config is the whole configuration, complete with defaults.
type Config struct {
	Daemon  Daemon
	Control Control
	Token   Token
	Policy  Policy
	SP      SP
	Network Network
	Audit   Audit
	Limits  Limits
}

// Daemon is the section [daemon].
type Daemon struct {
	StateDir  string // serials, installed policy; default /var/lib/wardgate
	RunDir    string // sockets; default /run/wardgate
	LogLevel  string // debug, info, warn, error; default info
	LogFormat string // json, console; default json
}

// Control is the section [control].
type Control struct {
	Socket string // path of the Unix socket; default <run_dir>/control.sock
	Group  string // group that may use it beside root; default "" (root only)
}

// Token is the section [token].
type Token struct {
	Module        string // path of the PKCS#11 library; required
	Label         string // label of the token; required
	PINFile       string // exactly one of the three PIN sources is set
	PINCredential string // name of a systemd credential (LoadCredential=)
	PINEnv        string // name of an environment variable
	Chip          string // path of wardgate-chip; default /usr/libexec/wardgate/wardgate-chip
	User          string // user under which the chip process runs; default "" (the daemon's own)
}

// Policy is the section [policy].
type Policy struct {
	File    string   // where the installed policy lies; default <state_dir>/policy.jws
	Anchors []string // PEM files with the CA certificates that policy signers chain to; required
	CRLs    []string // PEM or DER files with revocation lists for them; default none
}

// SP is the section [sp]: the service provider's centre. Without Anchors there is none, and policies
// and certificates are brought by hand.
type SP struct {
	URL     string   // https://HOST[:PORT]; default "": what `wardgate join URL` said last
	Anchors []string // PEM files with the CA certificates that the centre's TLS certificate chains to; default none
}

// The values of Network.TCP.
const (
	TCPNever    = "never"    // neither opened nor accepted
	TCPFallback = "fallback" // accepted, and opened where UDP is not answered
	TCPAlways   = "always"   // accepted, and opened in place of UDP
)

// Network is the section [network].
type Network struct {
	TUN          string       // name of the TUN device; default "wardgate0"
	Queues       int          // TUN queues and workers; default 0: one per CPU, at most 8
	MTU          int          // of the TUN device, bytes; default 0: from the link to the internet
	Listen       []netip.Addr // addresses for IKE and ESP; default none: all
	IKEPort      uint16       // default 500
	NATTPort     uint16       // default 4500
	ForceEncap   bool         // always ESP in UDP; default false
	TCP          string       // TCP encapsulation (RFC 9329): one of the TCP… constants; default TCPFallback
	TCPPort      uint16       // default 4500
	RouteTable   int          // default 5747
	RulePriority int          // default 57
	Mark         uint32       // fwmark of the daemon's sockets; default 0x57470001
	NFLogGroup   uint16       // default 5747
}

// Audit is the section [audit].
type Audit struct {
	File string // default <state_dir>/audit.jsonl
}

// Limits is the section [limits].
type Limits struct {
	HeldPackets      int           // packets held per connection while its tunnel is made; default 64
	HeldBytes        int           // the same in bytes; default 262144
	HeldFor          time.Duration // longest time a packet is held; default 10s
	Flows            int           // flows tracked at once; default 65536
	HalfOpen         int           // unauthenticated IKE SAs at once; default 1024
	CookieThreshold  int           // half-open IKE SAs from which on cookies are demanded; default 64
	PuzzleThreshold  int           // half-open IKE SAs from which on puzzles are given; above HalfOpen: to single addresses only; default a quarter of HalfOpen
	PuzzleDifficulty int           // zero bits of a puzzle at first; default 16
	PuzzleMaximum    int           // zero bits of a puzzle when there is hardly any room; default 20
	PuzzleSolve      int           // zero bits of the hardest puzzle of a peer that is solved, 0: none; default 22
	TCPConnections   int           // TCP connections of peers at once; default 4096
	RefusalsPerSec   int           // audit records of refused packets per second; default 20
	ShutdownDeadline time.Duration // time for a graceful stop; default 5s
}

// Load reads, checks and completes the file. Errors wrap ErrConfig (what is wrong with the
// content) or the error of reading it.
func Load(path string) (*Config, error) { return load(path) }

// Parse is Load for data at hand; name is used in messages only.
func Parse(name string, data []byte) (*Config, error) { return parse(name, data) }
