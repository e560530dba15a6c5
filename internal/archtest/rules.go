package archtest

// module is the module path that go.mod declares.
const module = "wardgate"

// arrow says which other packages of this module a package may import outside its tests.
// A package that is not listed here may import none, and the test asks for a line.
type arrow struct {
	pkg string
	// to: package paths below the module; a trailing "/..." takes a folder and all below it.
	to  []string
	why string
}

// arrows is docs/architecture.md's picture as data: imports point down, and the packages under
// router do not know one another.
var arrows = []arrow{
	{"ike/message", nil, "the codec turns bytes into payloads and back: it knows neither cryptography nor the state machine"},
	{"ike/suite", nil, "the transforms know no messages"},
	{"ike", []string{"ike/message", "ike/suite", "internal/certs"}, "the IKE SA is handed signers, clocks and senders; it opens no token, TUN device or policy"},
	{"ike/iketest", []string{"ike", "ike/message", "ike/suite", "internal/certs", "internal/labca"}, "the fakes that stand around the IKE SA in tests"},
	{"esp", []string{"esp/aesgcm"}, "esp is given keys, not an IKE SA, and never knows who the peer is"},
	{"esp/aesgcm", nil, "a cipher knows nobody"},
	{"tun", nil, "the TUN device knows packets, not IPsec"},
	{"tun/tuntest", []string{"tun"}, "the fake beside the interface"},
	{"policy", []string{"internal/certs"}, "a policy decides from what it is given and touches neither network nor clock"},
	{"audit", nil, "the record decides nothing and knows nobody"},
	{"pkichip", []string{"pkichip/chipproto", "internal/certs"}, "the client of the chip process knows neither IKE nor the policy; it hands out crypto.Signer"},
	{"pkichip/chipproto", nil, "the protocol between the two processes is shared, so it depends on neither"},
	{"pkichip/token", []string{"pkichip/chipproto", "internal/certs"}, "the PKCS#11 side is linked into the chip process alone and stays small"},
	{"internal/certs", nil, "the certificate profile is a leaf that ike, policy and pkichip share"},
	{"internal/testvectors", nil, "a leaf for tests"},
	{"internal/benchjson", nil, "a leaf for the laboratory"},
	{"internal/archtest", nil, "this test"},
	{"internal/labca", []string{"internal/certs"}, "the issuing authority of labs and tests makes certificates and nothing else"},
	{"router/config", nil, "the configuration file is read, checked and handed on"},
	{"router/wire", nil, "sockets carry datagrams and know neither ESP nor IKE beyond where the SPI lies"},
	{"router/revocation", []string{"internal/certs"}, "revocation lists and OCSP responses over HTTP, for chains that somebody else has judged"},
	{"router/addresswatch", nil, "the machine's addresses, from netlink: what follows from them is router's to decide"},
	{"router/kernel", nil, "links, routes and nftables: the kernel is told what router decided"},
	{"router/pathmtu", nil, "path MTU and what follows from it for inner packets: octets and times in, octets and numbers out"},
	{"internal/localsocket", nil, "a Unix socket for root and one group, and who is at its other end: router/control and sp/operator share it"},
	{"internal/memory", nil, "how much of the heap may be garbage: the daemons share it"},
	{"router/control", []string{"internal/localsocket"}, "the control API is types and transport, so that cmd/wardgate need not link the data path"},
	{"router/centre", []string{"internal/certs"}, "the SP's centre as the device sees it: token, policy and clock are interfaces that it declares"},
	{"router", []string{"tun/...", "esp", "ike", "ike/suite", "pkichip", "audit", "policy", "router/...", "internal/certs"}, "router is the one place where the rooms meet; it parses no wire format, so not ike/message"},
	{"internal/lab", []string{"internal/...", "policy", "sp/registry", "pkichip", "audit", "router/control", "ike", "ike/suite", "esp"}, "the laboratory drives the product from outside, through its binaries, files and control API; sp/registry writes the files of the centre; ike and esp are for its attackers, who speak the protocols themselves"},
	{"internal/ikeload", []string{"ike", "ike/suite", "esp", "pkichip", "internal/labca", "internal/memory"}, "load on an IKE responder, and one to set beside others: package ike over sockets, with keys in software or on a token"},
	{"internal/sploadgen", []string{"internal/labca", "internal/certs", "policy", "sp/registry"}, "the load on the centre comes from outside: network, command line and files; of the centre it knows the registry's model alone"},
	{"sp/registry", []string{"internal/certs", "policy"}, "the model of members and contracts: of policy it takes the words and types, and it does no I/O but reading a folder that it is given"},
	{"sp/registry/registrytest", []string{"sp/registry", "policy", "internal/certs", "internal/labca"}, "registries for tests"},
	{"sp/compile", []string{"sp/registry", "policy", "internal/certs"}, "registry in, policy documents out: it signs nothing, stores nothing and reads no clock"},
	{"sp/store", []string{"sp/registry"}, "the database keeps what it is given: it issues, signs and compiles nothing, and knows nobody above it"},
	{"sp/issue", []string{"internal/certs"}, "a service's CA is handed signers, times and a recorder; it knows neither registry nor database"},
	{"sp/est", []string{"sp/issue", "internal/certs"}, "the enrolment server asks interfaces for membership and issues through sp/issue's"},
	{"sp/operator", []string{"sp/registry", "internal/certs", "internal/localsocket"}, "the operators' API asks an interface for what the centre does; it knows neither database nor CAs"},
	{"sp/operator/operatortest", []string{"sp/operator"}, "answers against the document, for tests"},
	{"sp", []string{"sp/...", "policy", "pkichip", "internal/certs", "internal/memory"}, "the centre is the one place where registry, database, CAs, enrolment and policies meet, and where their keys are asked of a token; it knows nothing of routers"},
	{"cmd/wardgate-sp", []string{"sp", "sp/..."}, "flags, files and signals around the centre"},
	{"cmd/wardgated", []string{"router/...", "router", "internal/memory"}, "flags, configuration, signals, exit codes"},
	{"cmd/wardgate", []string{"router/control", "policy", "audit", "pkichip", "pkichip/chipproto", "internal/certs"}, "the operator's command line talks to the daemon over its socket and must not link the data path"},
	{"cmd/wardgate-chip", []string{"pkichip/token", "pkichip/chipproto"}, "foreign C code lives in this process: nothing that parses packets may"},
	{"cmd/wardgate-lab", []string{"internal/...", "router/control", "policy"}, "the demo and the laboratory's tools; not shipped"},
}

// core are the packages (and all below them) that do no I/O: docs/architecture.md, "The core
// does no I/O". Fakes and tests are exempt.
var core = []string{"ike", "esp", "policy"}

// coreImports are bans on what the core imports, by exact path or by folder ("x/...").
var coreImports = []struct{ path, why string }{
	{"net", "the core touches no network: addresses are net/netip"},
	{"net/http", "the core touches no network"},
	{"os/...", "the core touches neither files, environment nor processes; it is given bytes"},
	{"os", "the core touches neither files, environment nor processes; it is given bytes"},
	{"syscall", "the core makes no system calls"},
	{"golang.org/x/sys/...", "the core makes no system calls"},
	{"golang.org/x/net/...", "the core touches no network"},
	{"io/ioutil", "the core touches no files"},
	{"log", "the core logs nothing: it returns errors and tells its owner"},
	{"log/slog", "the core logs nothing: it returns errors and tells its owner"},
	{"go.uber.org/zap/...", "the core logs nothing: it returns errors and tells its owner"},
	{"go.uber.org/zap", "the core logs nothing: it returns errors and tells its owner"},
	{"C", "the packet parsers are pure Go"},
}

// coreCalls are bans on what the core refers to: package path to names ("*": any).
var coreCalls = []struct{ path, name, why string }{
	{"time", "Now", "time is an input: a simulator runs the core on a virtual clock"},
	{"time", "Since", "reads the clock"},
	{"time", "Until", "reads the clock"},
	{"time", "Sleep", "waits on the real clock"},
	{"time", "After", "waits on the real clock"},
	{"time", "AfterFunc", "waits on the real clock: use the Clock that was handed in"},
	{"time", "NewTimer", "waits on the real clock: use the Clock that was handed in"},
	{"time", "NewTicker", "waits on the real clock: use the Clock that was handed in"},
	{"time", "Tick", "waits on the real clock"},
	{"crypto/rand", "Reader", "randomness is an input, so that a seed reproduces a run"},
	{"crypto/rand", "Read", "randomness is an input, so that a seed reproduces a run"},
	{"math/rand", "*", "randomness is an input, and this one is guessable"},
	{"math/rand/v2", "*", "randomness is an input, and this one is guessable"},
}

// cgoAllowed are the packages that may contain cgo or import the PKCS#11 binding.
var cgoAllowed = []string{"pkichip/token", "cmd/wardgate-chip"}

// shipped are the binaries that reach a hospital, and what none of them may link.
var (
	shipped = []struct {
		pkg string
		cgo bool
	}{
		{"cmd/wardgated", false},
		{"cmd/wardgate", false},
		{"cmd/wardgate-chip", true},
	}
	notShipped = []struct{ path, why string }{
		{"testing", "test code is not shipped"},
		{module + "/internal/lab", "the laboratory is not shipped"},
		{module + "/internal/labca", "an issuing authority for tests must not be in reach of a hospital's router"},
		{module + "/internal/testvectors", "for tests only"},
		{"github.com/google/gopacket/...", "for tests and capture files only, never the hot path"},
		{"pgregory.net/rapid", "for tests only"},
	}
	// notDaemon are bans for wardgated alone.
	notDaemon = []struct{ path, why string }{
		{"github.com/miekg/pkcs11", "foreign C code stays in the chip process"},
		{"github.com/spf13/cobra", "daemons use flag"},
	}
	// notChip are bans for the chip process.
	notChip = []struct{ path, why string }{
		{module + "/ike/...", "the process that holds the PIN parses nothing from the network"},
		{module + "/router/...", "the process that holds the PIN parses nothing from the network"},
		{"net/http", "the process that holds the PIN speaks over its socket pair only"},
	}
)
