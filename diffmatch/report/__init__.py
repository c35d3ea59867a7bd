"""Reports: one self-contained HTML file with tables, curves and interactive meshes; still pictures of meshes."""

from diffmatch.report.environment import environment as environment
from diffmatch.report.mesh_fit import add_mesh_fit as add_mesh_fit
from diffmatch.report.png import encode_png as encode_png
from diffmatch.report.render import render_mesh as render_mesh
from diffmatch.report.report import Report as Report
from diffmatch.report.values import Metric as Metric
from diffmatch.report.values import format_value as format_value
from diffmatch.report.view import Frame as Frame
from diffmatch.report.view import View as View
