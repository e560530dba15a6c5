// Package registry is what the service provider (SP) has agreed with its members: who they are,
// which devices they have, which services (groups) those have joined, and the contracts between
// them. It is the model only: it issues nothing, signs nothing and never reads a clock; whatever
// depends on time takes it as an argument.
//
// A registry is kept as files that can live in version control, one TOML file an object:
//
//	members/NAME.toml      the organisation
//	devices/NAME.toml      its router: zones, gateways, the services it has joined
//	devices/NAME.pem       the device certificate that it was registered with
//	services/NAME.toml     a VPN service (group) with the SP's uniform rules
//	contracts/NAME.toml    what two devices may do with each other by a service
//
// The file's name is the object's. Load reads such a folder, Export writes one, and what Export
// wrote is read back as the same registry and written again as the same octets.
//
// A *Registry is an immutable snapshot: New and Load check it as a whole (every rule has a code,
// see Fault), and whoever is given one may share it between goroutines. What its methods return
// is read-only.
package registry
