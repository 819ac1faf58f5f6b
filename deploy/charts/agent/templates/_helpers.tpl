{{/* A value, else the one of the same name below `global`. Call with (list $ "name"). */}}
{{- define "agent.value" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{- get $root.Values $name | default (get $root.Values.global $name) | default "" -}}
{{- end }}

{{- define "agent.name" -}}
{{ .Values.resourceName | default "ztunnel" }}
{{- end }}

{{- define "agent.platform" -}}
{{- $named := include "agent.value" (list . "platform") -}}
{{- if $named -}}{{ $named }}{{- else if contains "-gke" .Capabilities.KubeVersion.GitVersion -}}gke{{- end -}}
{{- end }}

{{- define "agent.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{- with include "agent.value" (list . "hub") }}{{ . }}/{{ end -}}
{{ .Values.image }}:{{ include "agent.value" (list . "tag") | default .Chart.AppVersion }}
{{- with include "agent.value" (list . "variant") }}-{{ . }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "agent.istiod" -}}
istiod{{ with .Values.revision }}-{{ . }}{{ end }}.{{ .Values.istioNamespace }}.svc:15012
{{- end }}

{{- define "agent.cluster" -}}
{{- $global := .Values.global.multiCluster | default dict -}}
{{ .Values.multiCluster.clusterName | default $global.clusterName | default "Kubernetes" }}
{{- end }}

{{/* What selects the pods. Equal to those of ztunnel's chart, so that one can be upgraded to the other. */}}
{{- define "agent.selector" -}}
app: ztunnel
{{- end }}

{{- define "agent.metadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "agent.labels" . | nindent 2 }}
{{- with .Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "agent.labels" -}}
app.kubernetes.io/name: ztunnel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: isthmus
app.kubernetes.io/version: {{ include "agent.value" (list . "tag") | default .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.revision }}
istio.io/rev: {{ . }}
{{- end }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}
