package operator

// Route is a route as the document should have it.
type Route struct {
	Method, Path string
	Query, Kinds []string
}

// Routes lists the API's routes.
func Routes() []Route {
	var out []Route
	for i := range routes {
		out = append(out, Route{routes[i].method, routes[i].path, routes[i].query, routes[i].kinds})
	}
	return out
}

// What tests need to know.
const (
	MaxRequests = maxRequests
	MaxHeavy    = maxHeavy
	MaxOrder    = maxOrder
)
