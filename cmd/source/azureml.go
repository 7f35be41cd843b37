package source

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// errWorkspace is for what only the API of a workspace could resolve.
var errWorkspace = errors.New("blobmount does not ask an Azure ML workspace: name a datastore, azureml://datastores/NAME/paths/PREFIX with --datastore FILE, " +
	"or the container itself, az://CONTAINER[/PREFIX] with --account-name ACCOUNT")

var errAzureML = errors.New("the URI of a datastore must look like azureml://datastores/NAME/paths/[PREFIX], or " +
	"azureml://subscriptions/ID/resourcegroups/GROUP/workspaces/WORKSPACE/datastores/NAME/paths/[PREFIX]")

// longForm is what stands before the datastore when the URI names its workspace. Azure writes resourcegroups and
// resourceGroups; in identifiers of resources the provider stands before the workspace.
var longForm = regexp.MustCompile(`(?i)^subscriptions/[^/]+/resourcegroups/[^/]+/(?:providers/Microsoft\.MachineLearningServices/)?workspaces/[^/]+/`)

// datastoreName is what Azure Machine Learning accepts for a datastore; it compares names without case.
var datastoreName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`)

func parseAzureML(rest string) (Source, error) {
	rest = rest[len(longForm.FindString(rest)):]
	kind, rest, _ := strings.Cut(rest, "/")
	if !strings.EqualFold(kind, "datastores") {
		switch strings.ToLower(kind) {
		case "jobs", "locations", "registries", "subscriptions":
			return Source{}, errWorkspace
		}
		return Source{}, errAzureML
	}
	name, rest, _ := strings.Cut(rest, "/")
	paths, prefix, _ := strings.Cut(rest, "/")
	if !strings.EqualFold(cmp.Or(paths, "paths"), "paths") {
		return Source{}, errAzureML
	}
	if !datastoreName.MatchString(name) {
		return Source{}, errors.New("the name of the datastore is not valid: it must be letters, digits, '_' and '-'")
	}
	prefix, err := cleanPrefix(prefix)
	if err != nil {
		return Source{}, err
	}
	return Source{Datastore: name, Prefix: prefix}, nil
}

// Resolve fills in what a definition says about the datastore that the source names. Sources that name none are
// returned as they are, with a nil definition.
func (s Source) Resolve(definitions []Definition) (Source, *Definition, error) {
	if s.Datastore == "" {
		return s, nil, nil
	}
	for i := range definitions {
		d := &definitions[i]
		if !strings.EqualFold(d.Name, s.Datastore) {
			continue
		}
		if d.Unsupported != "" {
			return Source{}, nil, fmt.Errorf("datastore definition %s: %s", d.File, d.Unsupported)
		}
		s.Container, s.Account, s.Endpoint, s.Secondary = d.Container, d.Account, d.Endpoint, d.Secondary
		var err error
		if s.Prefix, err = cleanPrefix(d.Prefix + s.Prefix); err != nil {
			return Source{}, nil, fmt.Errorf("datastore definition %s, and the source: %w", d.File, err)
		}
		return s, d, nil
	}
	if len(definitions) == 0 {
		return Source{}, nil, fmt.Errorf("nothing says where datastore %s is: give its definition, --datastore FILE.yml, "+
			"or use az://CONTAINER[/PREFIX] with --account-name ACCOUNT", s.Datastore)
	}
	var names []string
	for _, d := range definitions {
		names = append(names, d.Name)
	}
	return Source{}, nil, fmt.Errorf("there is no definition of datastore %s: --datastore has %s", s.Datastore, strings.Join(names, ", "))
}
