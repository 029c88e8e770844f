"""What people look at: tables of pictures, charts, pages and tables of text; what they show is the stages' matter."""
